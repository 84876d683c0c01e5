"""The file that marks a job as complete, with its results."""

import json
from collections.abc import Mapping
from pathlib import Path

from grace_exp.tracking.summary import write_json_atomic

RESULT_FILE = "result.json"


def write_result(run_dir: Path, figures: Mapping[str, float]) -> None:
    """Write `<run_dir>/result.json`; a job does this last.

    Args:
        run_dir: The run folder.
        figures: What the job returned, by metric name; nan and inf become null.
    """
    write_json_atomic(run_dir / RESULT_FILE, {"figures": dict(figures)})


def read_result(run_dir: Path) -> dict[str, float | None] | None:
    """Return the results of the job that ran in `run_dir`; None if it did not end successfully."""
    path = run_dir / RESULT_FILE
    if not path.is_file():
        return None
    figures: dict[str, float | None] = json.loads(path.read_text(encoding="utf-8"))["figures"]
    return figures
