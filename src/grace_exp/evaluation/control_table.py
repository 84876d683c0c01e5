"""The effect of rationales on held-out sets: modes and control rationales, centred and not, in one table."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from rich.table import Table

from grace_exp.config.evaluation import EvaluationConfig
from grace_exp.data.batch import Role
from grace_exp.data.plain_text import plain_text_tokenizer
from grace_exp.encoder.control_rationales import OwnRationale, TokenIds, control_rationales
from grace_exp.encoder.encoder import GraceEncoder
from grace_exp.evaluation.heldout_sets import HeldoutSet, load_set
from grace_exp.evaluation.scores import ItemScores, Vectors, item_scores, rise, score
from grace_exp.tracking.atomic import write_text_atomic
from grace_exp.tracking.summary import write_json_atomic

_SCORE_COLUMNS = ("score", "low", "high", "centred", "centred_low", "centred_high")


@dataclass(frozen=True)
class ControlRow:
    """One set embedded in one way.

    Attributes:
        set_name: Name of the held-out set.
        row: A mode (`prompt_only`, `rationale`, `query_only`, `adaptive`) or a control of `control_rationales`.
        plain: Scores of the items with the plain embeddings.
        centred: Scores of the items after the mean embedding of the set's texts of the same role was subtracted.
        tokens_per_text: Mean rationale length.
        ms_per_text: Time per distinct text. Given rationales take no writing.
    """

    set_name: str
    row: str
    plain: ItemScores
    centred: ItemScores
    tokens_per_text: float
    ms_per_text: float


@dataclass(frozen=True)
class _Side:
    """Texts that are embedded in one role."""

    role: Role
    texts: list[str]


def control_rows(
    encoder: GraceEncoder,
    config: EvaluationConfig,
    *,
    seed: int,
    batch_size: int = 32,
    announce: Callable[[str], None] = lambda line: None,
) -> list[ControlRow]:
    """Evaluate every set of the configuration in all modes and with all control rationales.

    Args:
        encoder: The model, preferably without a cache, so that times are those of the model.
        config: The sets, and the temperature of the model's own rationales.
        seed: Seed of their sampling, of random words, and of the exchange of rationales.
        batch_size: Texts in one batch.
        announce: Called with the name of the next set.

    Raises:
        DataError: A set has only one text.
    """
    rows = []
    for name, chosen in config.sets.items():
        announce(f"controls: {name}")
        rows += _Rows(encoder, name, load_set(name, chosen), seed, batch_size).all(config.temperature)
    return rows


class _Rows:
    """The rows of one set."""

    def __init__(self, encoder: GraceEncoder, name: str, heldout: HeldoutSet, seed: int, batch_size: int) -> None:
        self._encoder = encoder
        self._name = name
        self._heldout = heldout
        self._seed = seed
        self._settings: dict[str, Any] = {"batch_size": batch_size, "show_progress_bar": False, "seed": seed}
        if heldout.scores is not None:  # both columns have the same role, as in `evaluate_sets`
            self._sides = [_Side(Role.QUERY, [*heldout.first, *heldout.second])]
        else:
            self._sides = [_Side(Role.QUERY, heldout.first), _Side(Role.POSITIVE, heldout.second)]

    def all(self, temperature: float) -> list[ControlRow]:
        """Return the rows of modes first, then those of controls."""
        self._encoder.encode(self._sides[0].texts[:1], mode="rationale", **self._settings)  # first calls take longer
        prompt_only, _ = self._row("prompt_only", [{"mode": "prompt_only"}] * len(self._sides))
        written, rationale_row = self._row(
            "rationale", [{"mode": "rationale", "temperature": temperature}] * len(self._sides)
        )
        rows = [prompt_only, written]
        if len(self._sides) > 1:
            one_sided = ["query_only"]
            if self._encoder.mode == "document_only":  # the mode of its training
                one_sided.append("document_only")
            for mode in one_sided:
                settings = {"mode": mode, "temperature": temperature}
                rows.append(self._row(mode, [settings] * len(self._sides))[0])
        if self._encoder.rule is not None:
            adaptive = {"mode": "adaptive", "temperature": temperature}
            rows.append(self._row("adaptive", [adaptive] * len(self._sides))[0])
        controls = [
            control_rationales(texts, self._words(), self._encoder.backbone.end_token_ids, self._seed)
            for texts in map(self._own, self._sides, rationale_row)
        ]
        for control in controls[0]:
            given = [
                {"rationales": [rationales[control][text] for text in side.texts]}
                for side, rationales in zip(self._sides, controls, strict=True)
            ]
            rows.append(self._row(control, given)[0])
        return rows

    def _row(self, row: str, settings: Sequence[dict[str, Any]]) -> tuple[ControlRow, list[list[TokenIds]]]:
        """Embed the set with settings of `encode` per side; also return the rationales per side."""
        vectors: list[Vectors] = []
        rationales: list[list[TokenIds]] = []
        start = perf_counter()
        for side, chosen in zip(self._sides, settings, strict=True):
            found = self._encoder.encode(side.texts, role=side.role, **self._settings, **chosen)
            vectors.append(np.asarray(found))
            rationales.append([tuple(ids) for ids in self._encoder.rationale_ids])
        seconds = perf_counter() - start
        distinct = sum(len(set(side.texts)) for side in self._sides)
        texts = sum(len(side.texts) for side in self._sides)
        tokens = sum(len(ids) for of_side in rationales for ids in of_side)
        return (
            ControlRow(
                self._name,
                row,
                plain=self._scored(vectors),
                centred=self._scored([centred(found) for found in vectors]),
                tokens_per_text=tokens / texts,
                ms_per_text=1000 * seconds / distinct,
            ),
            rationales,
        )

    def _scored(self, vectors: Sequence[Vectors]) -> ItemScores:
        middle = len(self._heldout.first)
        first, second = vectors if len(vectors) > 1 else (vectors[0][:middle], vectors[0][middle:])
        return item_scores(first, second, self._heldout)

    def _own(self, side: _Side, rationales: Sequence[TokenIds]) -> dict[str, OwnRationale]:
        builder = self._encoder.prompt_builder(side.role)
        prompts = builder.many((side.role, text) for text in side.texts)
        return {
            text: OwnRationale(builder.text_ids(side.role, prompt), ids)
            for text, prompt, ids in zip(side.texts, prompts, rationales, strict=True)
        }

    def _words(self) -> list[TokenIds]:
        """Return token ids of the distinct words of the set's texts, each with a space before it."""
        words = sorted({word for side in self._sides for text in side.texts for word in text.split()})
        tokenize = plain_text_tokenizer(self._encoder.backbone.tokenizer)
        return [tuple(ids) for ids in tokenize([f" {word}" for word in words]) if ids]


def centred(vectors: Vectors) -> Vectors:
    """Return embeddings [texts, hidden] minus their mean."""
    wide = vectors.astype(np.float64)
    result: Vectors = (wide - wide.mean(axis=0)).astype(np.float32)
    return result


def control_figures(rows: Sequence[ControlRow]) -> dict[str, float]:
    """Return the scores by metric name: `controls/<set>/<row>` and `controls/<set>/<row>/centred`, points."""
    return {
        f"controls/{row.set_name}/{row.row}{ending}": items.figure()
        for row in rows
        for ending, items in (("", row.plain), ("/centred", row.centred))
    }


def control_table(rows: Sequence[ControlRow], resamples: int) -> Table:
    """Return a table of sets and rows: score, score of centred embeddings (with 95 % intervals), tokens, time."""
    table = Table(title="Modes and control rationales, points", title_justify="left")
    table.add_column("set")
    table.add_column("row", no_wrap=True)
    for column in ("score", "centred", "tokens per text", "ms per text"):
        table.add_column(column, justify="right")
    for number, row in enumerate(rows):
        if number and row.set_name != rows[number - 1].set_name:
            table.add_section()
        figures = [str(score(items, resamples)) for items in (row.plain, row.centred)]
        table.add_row(row.set_name, row.row, *figures, f"{row.tokens_per_text:.1f}", f"{row.ms_per_text:.1f}")
    return table


def adaptive_lines(rows: Sequence[ControlRow], resamples: int) -> list[str]:
    """Return a line for each set with what `mode=adaptive` saves and loses; empty without such rows.

    Differences of scores are paired by item, with 95 % intervals.
    """
    lines = []
    for row in rows:
        if row.row != "adaptive":
            continue
        others = {other.row: other for other in rows if other.set_name == row.set_name}
        whole, none = others["rationale"], others["prompt_only"]
        tokens, time = (
            100 * part / total if total else 100.0
            for part, total in ((row.tokens_per_text, whole.tokens_per_text), (row.ms_per_text, whole.ms_per_text))
        )
        lines.append(
            f"{row.set_name}: adaptive takes {tokens:.0f} % of the tokens and {time:.0f} % of the time of rationale; "
            f"score against rationale {rise(whole.plain, row.plain, resamples)}, against prompt_only "
            f"{rise(none.plain, row.plain, resamples)}"
        )
    return lines


def controls_section(rows: Sequence[ControlRow], resamples: int, machine: str) -> list[str]:
    """Return the table as lines of Markdown, for a model card."""
    return [
        "What the rationales do for the figures: the same texts without rationales, and with rationales that the model "
        "did not write to them.",
        f"Times of a distinct text on {machine}, without a cache; control rationales are given, not written.",
        "`centred`: the mean embedding of the set removed.",
        "",
        "| set | row | score | centred | tokens per text | ms per text |",
        "|---|---|---|---|---|---|",
        *(
            f"| {row.set_name} | `{row.row}` | {score(row.plain, resamples)} | {score(row.centred, resamples)} "
            f"| {row.tokens_per_text:.1f} | {row.ms_per_text:.1f} |"
            for row in rows
        ),
    ]


def write_controls(folder: Path, rows: Sequence[ControlRow], resamples: int, about: Mapping[str, Any]) -> None:
    """Write `controls.csv` (a line a row) and `controls.json` (with every item's score, to resample differences from).

    Args:
        folder: The folder.
        rows: Rows of all sets.
        resamples: Number of resamples of the bootstrap; 0: no intervals.
        about: What the scores depend on, for the JSON.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["set", "row", *_SCORE_COLUMNS, "tokens_per_text", "ms_per_text"])
    for row in rows:
        figures = [score(items, resamples) for items in (row.plain, row.centred)]
        values = [value for found in figures for value in (found.value, found.low, found.high)]
        costs = [f"{row.tokens_per_text:.2f}", f"{row.ms_per_text:.2f}"]
        writer.writerow([row.set_name, row.row, *("" if value is None else f"{value:.4f}" for value in values), *costs])
    write_text_atomic(folder / "controls.csv", text.getvalue())
    records = [
        {
            "set": row.set_name,
            "row": row.row,
            "plain": row.plain.as_dict(),
            "centred": row.centred.as_dict(),
            "tokens_per_text": row.tokens_per_text,
            "ms_per_text": row.ms_per_text,
        }
        for row in rows
    ]
    write_json_atomic(folder / "controls.json", {**about, "rows": records})
