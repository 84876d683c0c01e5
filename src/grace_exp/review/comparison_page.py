"""Data of a page that compares several runs."""

from collections.abc import Sequence
from typing import Any

from grace_exp.review.baselines import heldout_rows
from grace_exp.review.charts import thinned
from grace_exp.review.panels import panels
from grace_exp.review.run_files import Row, RunFiles
from grace_exp.review.settings_diff import differing_settings, shown_path
from grace_exp.review.verdict import verdict
from grace_exp.review.warnings_found import warnings_of
from grace_exp.tracking.metrics import SECTIONS


def comparison_page(runs: Sequence[RunFiles]) -> dict[str, Any]:
    """Return the page's data: differences of the settings, verdicts, results, and curves aligned by step."""
    labels = labels_of(runs)
    return {
        "kind": "runs",
        "runs": [
            {
                "label": label,
                "name": run.name,
                "folder": shown_path(run.path),
                "finished": run.finished,
                "steps": len(run.steps),
                "verdict": verdict(run).as_dict(),
                "warnings": warnings_of(run),
                "heldout": heldout_rows(run),
            }
            for label, run in zip(labels, runs, strict=True)
        ],
        "differences": differing_settings(runs),
        "charts": _charts(runs, labels),
    }


def labels_of(runs: Sequence[RunFiles]) -> list[str]:
    """Return a short name for each run that is different from the others: by seed, otherwise by folder."""
    names = [run.name for run in runs]
    if len(set(names)) == len(names):
        return names
    return [f"{number}: {run.path.name}" for number, run in enumerate(runs, start=1)]


def _charts(runs: Sequence[RunFiles], labels: Sequence[str]) -> list[Row]:
    """Return one chart per metric with a line per run; a step without a value is a gap."""
    steps = sorted({step for run in runs for step in run.steps})
    found = []
    for panel in panels(dict.fromkeys(name for run in runs for name in run.metrics)):
        for name in panel.names:
            series: dict[str, list[float | None]] = {}
            for label, run in zip(labels, runs, strict=True):
                at = dict(zip(run.steps, run.metrics.get(name, []), strict=False))
                series[label] = [at.get(step) for step in steps]
            xs, thin = thinned(steps, series)
            found.append(
                {
                    "section": panel.section,
                    "section_title": SECTIONS[panel.section],
                    "title": name,
                    "unit": panel.unit,
                    "better": panel.better,
                    "meaning": panel.meaning,
                    "stacked": False,
                    "steps": xs,
                    "series": thin,
                    "last": {label: run.last(name) for label, run in zip(labels, runs, strict=True)},
                }
            )
    return found
