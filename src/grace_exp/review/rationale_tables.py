"""Tables of rationales on a page: the same texts before and after training, and the best and worst groups."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from grace_exp.review.run_files import Row, RunFiles
from grace_exp.review.word_diff import word_diff
from grace_exp.tracking.samples import EVOLUTION_COLUMNS

_TEXTS = 12
_GROUPS = 3


def before_and_after(run: RunFiles) -> list[Row]:
    """Return the same texts under the first and the last weights: rationale, changed words, rewards, neighbours.

    They come from the evolution table; for runs without one, from the examples of the held-out sets, without rewards.
    """
    steps = sorted({row["step"] for row in run.evolution})
    if len(steps) < 2:
        return _held_out_examples(run)
    first, last = (
        {_place(row): row for row in run.evolution if row["step"] == step and row["sample"] == 0}
        for step in (steps[0], steps[-1])
    )
    rows = []
    for place in [place for place in first if place in last][:_TEXTS]:
        old, new = first[place], last[place]
        rows.append(
            _pair(old["text"], old["rationale"], new["rationale"])
            | {
                "role": old["role"],
                "steps": [steps[0], steps[-1]],
                "tokens": [old["rationale_tokens"], new["rationale_tokens"]],
                "figures": {name: [old[name], new[name]] for name in figure_names([old]) if old[name] is not None},
                "neighbours": [json.loads(old["neighbours"])[:1], json.loads(new["neighbours"])[:1]],
            }
        )
    return rows


def groups(run: RunFiles) -> dict[str, list[Row]]:
    """Return the groups with the highest and the lowest mean reward in the last step with samples."""
    steps = [row["step"] for row in run.samples]
    if not steps:
        return {"best": [], "worst": []}
    by_group: dict[tuple[Any, ...], list[Row]] = {}
    for row in run.samples:
        if row["step"] == max(steps) and row.get("final") is not None:
            by_group.setdefault((row["instance"], row["role"], row["text"]), []).append(row)
    shown = [_group(rows, max(steps)) for rows in by_group.values()]
    ranked = sorted(shown, key=lambda group: float(group["reward"]), reverse=True)
    few = min(_GROUPS, (len(ranked) + 1) // 2)
    return {"best": ranked[:few], "worst": ranked[len(ranked) - min(few, len(ranked) - few) :][::-1]}


def figure_names(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the columns of reward values in rows of a table."""
    return list(dict.fromkeys(name for row in rows for name in row if name not in EVOLUTION_COLUMNS))


def _group(rows: Sequence[Row], step: int) -> Row:
    names = figure_names(rows)
    return {
        "step": step,
        "text": rows[0]["text"],
        "role": rows[0]["role"],
        "reward": sum(row["final"] for row in rows) / len(rows),
        "rationales": [
            {"rationale": row["rationale"], "tokens": row["rationale_tokens"], "figures": {n: row[n] for n in names}}
            for row in sorted(rows, key=lambda row: -row["final"])
        ],
    }


def _place(row: Row) -> tuple[Any, ...]:
    return row["instance"], row["role"], row["text"]


def _held_out_examples(run: RunFiles) -> list[Row]:
    before, after = run.heldout.get("before", {}), run.heldout.get("after", {})
    return [
        _pair(old["text"], old["rationale"], new["rationale"])
        | {"role": name, "steps": [0, run.summary.get("steps")], "tokens": None, "figures": {}, "neighbours": None}
        for name in before
        if name in after
        for old, new in zip(before[name]["examples"], after[name]["examples"], strict=True)
    ]


def _pair(text: str, before: str, after: str) -> Row:
    diff = [list(part) for part in word_diff(before, after)]
    return {"text": text, "before": before, "after": after, "words": diff}
