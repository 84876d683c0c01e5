"""Read the files in a run's folder as plain data."""

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from grace_exp.errors import GraceError
from grace_exp.tracking.command_record import FOLDER
from grace_exp.tracking.run_warnings import read_warnings
from grace_exp.tracking.samples import EVOLUTION_FOLDER, SAMPLES_FOLDER

Row = dict[str, Any]


class UnreadableRun(GraceError):
    """A folder holds no run, or a file of its run is broken."""


@dataclass(frozen=True)
class RunFiles:
    """The files of one run.

    Attributes:
        path: The run's folder.
        config: The resolved settings.
        steps: Numbers of the steps with metrics, counted from 0.
        metrics: Values by metric name, one per step; None if the step has none, or nan or inf.
        summary: The summary of a run that ended successfully; otherwise empty.
        provenance: Where the run comes from; empty if there is no such file.
        heldout: Results of sets by moment: `before`, `after`, `now`.
        benchmarks: Rows of each suite's table, by suite.
        warnings: Warnings given during the run: `step`, `kind`, `message`.
    """

    path: Path
    config: Mapping[str, Any]
    steps: list[int]
    metrics: dict[str, list[float | None]]
    summary: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    heldout: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    benchmarks: Mapping[str, list[dict[str, str]]] = field(default_factory=dict)
    warnings: list[Row] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The run's name and seed."""
        return f"{self.config['name']}, seed {self.config['seed']}"

    @property
    def finished(self) -> bool:
        """Whether the run ended successfully."""
        return bool(self.summary)

    @property
    def planned_steps(self) -> int:
        """The number of steps that were planned."""
        return int(self.config["job"]["steps"])

    @cached_property
    def samples(self) -> list[Row]:
        """All rows of the samples table."""
        return _parquet_rows(self.path / SAMPLES_FOLDER)

    @cached_property
    def evolution(self) -> list[Row]:
        """All rows of the evolution table."""
        return _parquet_rows(self.path / EVOLUTION_FOLDER)

    @cached_property
    def overrides(self) -> list[str]:
        """The overrides on the command line."""
        path = self.path / FOLDER / "overrides.yaml"
        return (
            [str(override) for override in yaml.safe_load(path.read_text(encoding="utf-8")) or []]
            if path.is_file()
            else []
        )

    def last(self, name: str) -> float | None:
        """Return the last value of a metric; None if it has none."""
        return next((value for value in reversed(self.metrics.get(name, [])) if value is not None), None)


def read_run(folder: Path) -> RunFiles:
    """Read the folder of a run that ended successfully, failed, or is still running.

    Raises:
        UnreadableRun: It is not the folder of a training run, or a file is broken; the message says which and why.
    """
    folder = folder.expanduser()
    if not folder.is_dir():
        raise UnreadableRun(f"{folder}: no such folder")
    missing = [name for name in ("config.yaml", "metrics.csv") if not (folder / name).is_file()]
    if missing:
        raise UnreadableRun(f"{folder}: not the folder of a training run (it has no {' and no '.join(missing)})")
    steps, metrics = _guarded(folder / "metrics.csv", _read_metrics)
    config = _guarded(folder / "config.yaml", lambda path: yaml.safe_load(path.read_text(encoding="utf-8")))
    if not isinstance(config, dict) or not {"name", "seed", "job", "reward"} <= config.keys():
        raise UnreadableRun(f"{folder / 'config.yaml'}: not the settings of a run of grace-exp")
    evaluation = folder / "evaluation"
    return RunFiles(
        path=folder,
        config=config,
        steps=steps,
        metrics=metrics,
        summary=_json(folder / "summary.json"),
        provenance=_json(folder / "provenance.json"),
        heldout={
            moment: _json(evaluation / f"{moment}.json")
            for moment in ("before", "after", "now")
            if (evaluation / f"{moment}.json").is_file()
        },
        benchmarks={path.stem: _guarded(path, _read_rows) for path in sorted(evaluation.glob("*.csv"))},
        warnings=_guarded(folder, read_warnings),
    )


def is_sweep(folder: Path) -> bool:
    """Whether a folder holds the jobs of a sweep."""
    return (folder / "sweep.json").is_file() or any(folder.glob("*/job.json"))


def _read_metrics(path: Path) -> tuple[list[int], dict[str, list[float | None]]]:
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    rows = list(csv.DictReader(whole.splitlines()))
    steps = [int(row["step"]) for row in rows]
    names = [name for name in (rows[0] if rows else {}) if name != "step"]
    return steps, {name: [_number(row[name]) for row in rows] for name in names}


def _number(cell: str) -> float | None:
    value = float(cell) if cell else math.nan
    return value if math.isfinite(value) else None


def _read_rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    found = _guarded(path, lambda file: json.loads(file.read_text(encoding="utf-8")))
    if not isinstance(found, dict):
        raise UnreadableRun(f"{path}: not a JSON object")
    return found


def _parquet_rows(folder: Path) -> list[Row]:
    import pyarrow.parquet as pq

    rows: list[Row] = []
    for path in sorted(folder.glob("step-*.parquet")):
        rows += _guarded(path, lambda file: pq.read_table(file).to_pylist())
    return rows


def _guarded(path: Path, read: Any) -> Any:
    try:
        return read(path)
    except (ValueError, KeyError, TypeError, OSError, yaml.YAMLError) as error:  # pyarrow's errors are ValueErrors
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UnreadableRun(f"{path}: {reason[0]}") from error
