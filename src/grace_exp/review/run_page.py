"""The data of the page of one run; the JSON file holds the same."""

from typing import Any

from grace_exp.review.baselines import heldout_rows, paper_rows
from grace_exp.review.charts import thinned
from grace_exp.review.panels import panels
from grace_exp.review.rationale_tables import before_and_after, groups
from grace_exp.review.run_files import Row, RunFiles
from grace_exp.review.settings_diff import changed_settings, flat, shown_path
from grace_exp.review.verdict import verdict
from grace_exp.review.warnings_found import warnings_of
from grace_exp.tracking.metrics import SECTIONS


def run_page(run: RunFiles) -> dict[str, Any]:
    """Return the page's data; see `html_report` for its order."""
    return {
        "kind": "run",
        "name": run.name,
        "folder": shown_path(run.path),
        "finished": run.finished,
        "steps": len(run.steps),
        "planned_steps": run.planned_steps,
        "verdict": verdict(run).as_dict(),
        "warnings": warnings_of(run),
        "drivers": drivers(run),
        "charts": charts(run),
        "before_and_after": before_and_after(run),
        "groups": groups(run),
        "time": _time(run),
        "evaluation": {
            "heldout": heldout_rows(run),
            "benchmarks": {suite: rows for suite, rows in run.benchmarks.items() if rows and "score" in rows[0]},
            "paper": paper_rows(run),
        },
        "configuration": {
            "overrides": run.overrides,
            "changed": changed_settings(run),
            "all": flat(run.config),
        },
        "provenance": flat({key: value for key, value in run.provenance.items() if key != "earlier"}),
        "resumed": [earlier.get("started") for earlier in run.provenance.get("earlier", [])],
    }


def drivers(run: RunFiles) -> list[Row]:
    """Return for each reward term: weight, mean share in the advantages, mean spread in a group, last mean."""
    terms = {name: term for name, term in run.config["reward"].get("terms", {}).items() if term is not None}
    rows = []
    for name, term in terms.items():
        shares = [v for v in run.metrics.get(f"reward/{name}/advantage_share", []) if v is not None]
        spreads = [v for v in run.metrics.get(f"reward/{name}/within_group_std", []) if v is not None]
        if shares:
            rows.append(
                {
                    "term": name,
                    "weight": term["weight"],
                    "advantage_share": sum(shares) / len(shares),
                    "within_group_std": sum(spreads) / len(spreads) if spreads else None,
                    "last_mean": run.last(f"reward/{name}/mean"),
                }
            )
    return sorted(rows, key=lambda row: -abs(row["advantage_share"]))


def charts(run: RunFiles) -> list[Row]:
    """Return all panels of the run with their values, by section."""
    found = []
    for panel in panels(run.metrics):
        steps, series = thinned(run.steps, {name: run.metrics[name] for name in panel.names})
        found.append(
            {
                "section": panel.section,
                "section_title": SECTIONS[panel.section],
                "title": panel.title,
                "unit": panel.unit,
                "better": panel.better,
                "meaning": panel.meaning,
                "stacked": panel.stacked,
                "steps": steps,
                "series": series,
                "last": {name: run.last(name) for name in panel.names},
            }
        )
    return found


def _time(run: RunFiles) -> dict[str, Any]:
    return {
        "seconds": dict(run.summary.get("seconds", {})),
        "peak_memory_gib": dict(run.summary.get("peak_memory_gib", {})),
    }
