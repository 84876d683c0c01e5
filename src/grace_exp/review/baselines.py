"""A run's held-out figures beside the untrained model, all-MiniLM and the paper."""

import csv
from collections.abc import Mapping
from typing import Any

from grace_exp.config.compose import conf_dir
from grace_exp.review.run_files import Row, RunFiles

NAMES = {
    "before": "rationale, before training",
    "after": "rationale, after training",
    "rise": "rise",
    "prompt_only_before": "prompt only, before",
    "prompt_only_after": "prompt only, after",
    "minilm": "all-MiniLM-L6-v2, for scale",
}
"""Figures of a held-out set in `summary.json`, in the order in which they are shown."""


def heldout_rows(run: RunFiles) -> list[Row]:
    """One row a figure and set: `set`, `figure`, `value`, `low`, `high`."""
    return [
        {"set": name, "figure": title, **figures[key]}
        for name, figures in run.summary.get("heldout", {}).items()
        for key, title in NAMES.items()
        if key in figures
    ]


def paper_rows(run: RunFiles) -> list[Row]:
    """The paper's MTEB averages for the run's backbone; empty for another, or where the table is not there.

    The table is `experiments/paper/mteb_results.csv` of a checkout.
    """
    path = conf_dir().parent / "experiments" / "paper" / "mteb_results.csv"
    backbone = str(run.config.get("backbone", {}).get("path") or "").rpartition("/")[2]
    if not backbone or not path.is_file():
        return []
    rows: list[Mapping[str, Any]] = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    return [dict(row) for row in rows if row["backbone"] == backbone and row["setting"] == run.config["data"]["mode"]]
