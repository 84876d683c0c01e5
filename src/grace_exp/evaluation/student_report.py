"""What a distilled student keeps of its teacher's quality: held-out scores of both, with the time per text."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from rich.table import Table

from grace_exp.config.evaluation import EvaluationConfig
from grace_exp.data.batch import Role
from grace_exp.evaluation.heldout_sets import load_set
from grace_exp.evaluation.scores import ItemScores, Score, Vectors, item_scores, rise, score

Embed = Callable[[list[str], Role], Vectors]

TEACHER, PROMPT_ONLY, BEFORE, STUDENT = "teacher", "teacher, prompt only", "student, before", "student"
_SNIPPET = """```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{folder}")
vectors = model.encode(["Prices fell.", "It got cheaper."])
model.similarity(vectors, vectors)
```"""


@dataclass(frozen=True)
class Measured:
    """The results of one model on a set.

    Attributes:
        items: Scores of the items.
        ms_per_text: Time per distinct text; None: not measured.
    """

    items: ItemScores
    ms_per_text: float | None


def measure(config: EvaluationConfig, embed: Embed) -> dict[str, Measured]:
    """Score and time every set of the configuration.

    Args:
        config: The sets.
        embed: Returns embeddings [texts, width] of distinct texts in a role, without a cache.
    """
    found = {}
    for name, chosen in config.sets.items():
        heldout = load_set(name, chosen)
        second_role = Role.QUERY if heldout.scores is not None else Role.POSITIVE  # as in `evaluate_sets`
        embed(heldout.first[:1], Role.QUERY)  # first calls take longer
        start = perf_counter()
        first, second = _column(heldout.first, Role.QUERY, embed), _column(heldout.second, second_role, embed)
        seconds = perf_counter() - start
        distinct = len(set(heldout.first)) + len(set(heldout.second))
        found[name] = Measured(item_scores(first, second, heldout), 1000 * seconds / distinct)
    return found


def _column(texts: list[str], role: Role, embed: Embed) -> Vectors:
    distinct = list(dict.fromkeys(texts))
    row_of = {text: row for row, text in enumerate(distinct)}
    return np.asarray(embed(distinct, role))[[row_of[text] for text in texts]]


@dataclass(frozen=True)
class SetReport:
    """The rows of one set.

    Attributes:
        name: The set's name.
        rows: Rows by name, `teacher` and `student` among them.
        untrained: Scores of the teacher's backbone before training, in the teacher's mode; None: unknown.
        resamples: Number of resamples of the bootstrap.
    """

    name: str
    rows: Mapping[str, Measured]
    untrained: ItemScores | None
    resamples: int

    def kept(self, row: str) -> float | None:
        """Return the row's gain over the untrained backbone as a share of the teacher's; None if that has none."""
        gain = self.rise(TEACHER)
        student_rise = self.rise(row)
        return None if gain is None or student_rise is None or gain.value <= 0 else student_rise.value / gain.value

    def rise(self, row: str) -> Score | None:
        """Return the row's gain over the untrained backbone, points."""
        return None if self.untrained is None else rise(self.untrained, self.rows[row].items, self.resamples)

    def line(self) -> str:
        """Return the result in one sentence."""
        times = [self.rows[row].ms_per_text or 0.0 for row in (STUDENT, TEACHER)]
        cost = f"{times[0]:.1f} ms per text, the teacher {times[1]:.1f} ms"
        kept = self.kept(STUDENT)
        if kept is not None:
            what = f"keeps {kept:.0%} of the teacher's gain, {self.rise(STUDENT)} of {self.rise(TEACHER)} points"
            if BEFORE in self.rows:  # what another model could do before is not a gain from the teacher
                what += f" (before distillation {self.rise(BEFORE)})"
        else:
            student_scores, its = (score(self.rows[row].items, self.resamples) for row in (STUDENT, TEACHER))
            why = "there is no gain to keep" if self.untrained is not None else "the gain is not known"
            what = f"has {student_scores}, the teacher {its} ({why})"
        return f"{self.name}: the student {what}; {cost}"

    def as_dict(self) -> dict[str, Any]:
        """Return the report for JSON, with every item's score."""
        return {
            "untrained": None if self.untrained is None else self.untrained.as_dict(),
            "kept": self.kept(STUDENT),
            "rows": {
                name: {
                    "score": score(row.items, self.resamples).as_dict(),
                    "rise": None if (above := self.rise(name)) is None else above.as_dict(),
                    "kept": self.kept(name),
                    "ms_per_text": row.ms_per_text,
                    **row.items.as_dict(),
                }
                for name, row in self.rows.items()
            },
        }

    def cells(self) -> list[tuple[str, ...]]:
        """Return lines of a table: set, row, score, share kept, milliseconds."""
        rows = [] if self.untrained is None else [("untrained", Measured(self.untrained, None))]
        lines: list[tuple[str, ...]] = []
        for name, row in [*rows, *self.rows.items()]:
            kept = self.kept(name) if name in self.rows else None
            share = "" if kept is None else f"{kept:.0%}"
            time = "" if row.ms_per_text is None else f"{row.ms_per_text:.1f}"
            lines.append((self.name, name, str(score(row.items, self.resamples)), share, time))
        return lines


_COLUMNS = ("set", "row", "score", "gain kept", "ms per text")


def student_table(reports: Sequence[SetReport]) -> Table:
    """Return a table of all sets, for the terminal."""
    table = Table(title="Teacher and student, points", title_justify="left")
    for number, column in enumerate(_COLUMNS):
        table.add_column(column, justify="left" if number < 2 else "right", no_wrap=number == 1)
    for report in reports:
        for cells in report.cells():
            table.add_row(*cells)
        table.add_section()
    return table


def student_card(folder: str, teacher: str, what: str, reports: Sequence[SetReport]) -> str:
    """Return the README of a student's folder: description, results, code that runs in the folder above.

    Args:
        folder: The folder's name.
        teacher: The teacher's name.
        what: A sentence about the student and its training.
        reports: Reports of all sets.
    """
    lines = [f"| {' | '.join(cells)} |" for report in reports for cells in report.cells()]
    return "\n".join(
        [
            "---",
            "library_name: sentence-transformers",
            "pipeline_tag: feature-extraction",
            "tags: [sentence-transformers, grace-exp, text-embedding, distillation]",
            "---",
            "",
            f"# Student of {Path(teacher).name}",
            "",
            f"{what} It writes no rationales and loads without grace-exp.",
            "",
            _SNIPPET.format(folder=folder),
            "",
            "Held-out figures with 95 % bootstrap intervals; `gain kept` is the rise above the untrained backbone "
            "(in the teacher's mode) as a share of the teacher's.",
            "",
            f"| {' | '.join(_COLUMNS)} |",
            f"|{'---|' * len(_COLUMNS)}",
            *lines,
            "",
            "It was measured on these sets only. The licences of the weights it began with and of the texts it learned "
            "from apply.",
            "",
        ]
    )
