"""A run's held-out results beside those of the untrained model, all-MiniLM and the paper."""

from grace_exp.evaluation.mteb.paper_figures import paper_table
from grace_exp.review.run_files import Row, RunFiles

NAMES = {
    "before": "rationale, before training",
    "after": "rationale, after training",
    "rise": "rise",
    "prompt_only_before": "prompt only, before",
    "prompt_only_after": "prompt only, after",
    "minilm": "all-MiniLM-L6-v2, for scale",
}
"""Results of a held-out set in `summary.json`, in the order in which they are shown."""


def heldout_rows(run: RunFiles) -> list[Row]:
    """Return one row per set and result: `set`, `figure`, `value`, `low`, `high`."""
    return [
        {"set": name, "figure": title, **figures[key]}
        for name, figures in run.summary.get("heldout", {}).items()
        for key, title in NAMES.items()
        if key in figures
    ]


def paper_rows(run: RunFiles) -> list[Row]:
    """Return the paper's MTEB averages for the run's backbone; empty for another one, or outside a checkout."""
    backbone = str(run.config.get("backbone", {}).get("path") or "").rpartition("/")[2]
    rows = paper_table() if backbone else []
    return [dict(row) for row in rows if row["backbone"] == backbone and row["setting"] == run.config["data"]["mode"]]
