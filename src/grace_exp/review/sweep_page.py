"""The data of a sweep's page: every job with its swept values, results and end; the best cell with its interval."""

import contextlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from grace_exp.review.run_files import Row, UnreadableRun
from grace_exp.review.settings_diff import shown_path
from grace_exp.sweeps.folders import short_names
from grace_exp.sweeps.record import read_records

_TRAINING = ("reward/total/mean", "embed/in_batch_accuracy")
_FEWEST = 2


def sweep_page(folder: Path) -> dict[str, Any]:
    """Return the page's data.

    Raises:
        UnreadableRun: The sweep's files are broken.
    """
    try:
        found = _sweep(folder)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UnreadableRun(f"{folder}: a broken file of a sweep ({str(error).splitlines()[0]})") from error
    jobs, metric, minimize = found["jobs"], found["metric"], found["minimize"]
    keys = list(dict.fromkeys(key for job in jobs for key in job["swept"]))
    names = short_names(keys)
    return {
        "kind": "sweep",
        "folder": shown_path(folder),
        "metric": metric,
        "direction": "lower" if minimize else "higher",
        "keys": {key: names[key] for key in keys},
        "figures": _figures(jobs, metric),
        "jobs": [
            {
                "folder": job["folder"],
                "status": job["status"],
                "swept": {key: _value(job["swept"].get(key)) for key in keys},
                "seconds": job.get("seconds"),
                "figures": job.get("figures", {}),
                "error": job.get("error", []),
            }
            for job in jobs
        ],
        "cells": _cells(jobs, keys, metric),
        "best": _best(jobs, keys, metric, minimize=minimize),
        "failed": [
            {"folder": job["folder"], "status": job["status"], "error": job.get("error", [])}
            for job in jobs
            if job["status"] != "finished"
        ],
    }


def _sweep(folder: Path) -> dict[str, Any]:
    """Return the sweep's jobs; without a table (it is still running, or was killed) from the jobs' records."""
    path = folder / "sweep.json"
    if path.is_file():
        written = json.loads(path.read_text(encoding="utf-8"))
        metric, minimize = written["optimized_metric"], written["direction"] == "minimize"
        jobs = list(written["jobs"])
    else:
        metric, minimize = None, False
        jobs = [asdict(record) | {"folder": name} for name, record in read_records(folder).items()]
    present = [name for job in jobs for name in job.get("figures", {})]
    heldout = sorted({name for name in present if name.startswith("val/") and name.endswith("/rationale")})
    candidates = [*heldout, *_TRAINING]
    chosen = metric or next((name for name in candidates if name in present), None)
    return {"jobs": jobs, "metric": chosen, "minimize": minimize}


def _figures(jobs: list[Row], metric: str | None) -> list[str]:
    present = dict.fromkeys(name for job in jobs for name in job.get("figures", {}))
    heldout = sorted(name for name in present if name.startswith("val/"))
    return [name for name in dict.fromkeys([metric, *heldout, *_TRAINING]) if name in present]


def _value(text: str | None) -> str | float | None:
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return None if text is None else number(text)
    return text


def _cells(jobs: list[Row], keys: list[str], metric: str | None) -> dict[str, Any] | None:
    """Return means over the jobs for each pair of values of two swept settings, also over seeds."""
    settings = [key for key in keys if key != "seed"]
    if metric is None or len(settings) < _FEWEST:
        return None
    rows, columns = (
        list(dict.fromkeys(str(job["swept"].get(key)) for job in jobs)) for key in (settings[0], settings[1])
    )
    values: dict[tuple[str, str], list[float]] = {}
    for job in jobs:
        value = job.get("figures", {}).get(metric) if job["status"] == "finished" else None
        if value is not None:
            place = (str(job["swept"].get(settings[0])), str(job["swept"].get(settings[1])))
            values.setdefault(place, []).append(value)
    return {
        "row_key": settings[0],
        "column_key": settings[1],
        "rows": rows,
        "columns": columns,
        "values": [
            {"row": row, "column": column, "value": sum(found) / len(found), "jobs": len(found)}
            for (row, column), found in values.items()
        ],
    }


def _best(jobs: list[Row], keys: list[str], metric: str | None, *, minimize: bool) -> Row | None:
    """Return the cell of settings with the best mean over its seeds.

    The interval is Student's over the seeds of the cell; with a single seed there is none.
    """
    cells: dict[tuple[str, ...], list[float]] = {}
    for job in jobs:
        value = job.get("figures", {}).get(metric) if metric and job["status"] == "finished" else None
        if value is not None:
            cell = tuple(f"{key}={job['swept'].get(key)}" for key in keys if key != "seed")
            cells.setdefault(cell, []).append(value)
    if not cells:
        return None
    means = {cell: sum(values) / len(values) for cell, values in cells.items()}
    best = (min if minimize else max)(means, key=lambda cell: means[cell])
    low = high = None
    if len(cells[best]) >= _FEWEST:
        from scipy.stats import t

        count = len(cells[best])
        variance = sum((value - means[best]) ** 2 for value in cells[best]) / (count - 1)
        half = float(t.ppf(0.975, count - 1)) * (variance / count) ** 0.5
        low, high = means[best] - half, means[best] + half
    return {"settings": list(best), "value": means[best], "low": low, "high": high, "jobs": len(cells[best])}
