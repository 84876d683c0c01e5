"""The run's metrics as a CSV file that can be continued after an interruption."""

import csv
import io
from argparse import Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor

from grace_exp.tracking.atomic import write_text_atomic
from grace_exp.tracking.metrics import check_listed

TIMED_PREFIXES = ("time/", "perf/")
"""Prefixes of columns that may differ between two runs of one seed: durations, speeds and memory."""

_STEP = "step"

Row = dict[str, str]
"""A row's cells by column name, without the empty cells."""


class MetricsCsv(Logger):
    """Lightning logger: one row per step, one column per metric, written to disk as soon as it is logged.

    Floats are written with as many digits as are needed to read the same float back. Columns have the order of their
    first appearance. Everything that varies with the machine's speed must be in columns that start with one of
    `TIMED_PREFIXES`. Then two runs of one seed agree in all other columns, and a run that was interrupted, truncated at
    its checkpoint and resumed leaves the same columns and rows as one that was not.
    """

    def __init__(self, path: Path) -> None:
        """Open `path` and keep its rows; a last line that a crash has cut off is dropped.

        Args:
            path: The CSV file; created with the first row.
        """
        super().__init__()
        self.path = path
        self._columns: list[str] = []
        self._last: Row = {}  # kept because further metrics of its step are added to it
        self._last_start = 0  # its byte offset in the file
        self._open()

    @property
    def name(self) -> str:
        """The kind of logger."""
        return "csv"

    @property
    def version(self) -> str:
        """The empty string, because a run has one metrics file."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run folder, which Lightning uses as its log folder."""
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing, because the resolved configuration is a separate file."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float | Tensor], step: int | None = None) -> None:
        """Add metrics to the row of `step`, which is the last row or a new one.

        Args:
            metrics: Numbers, or tensors of one element, by name.
            step: The step that they belong to; never lower than in an earlier call.

        Raises:
            ValueError: `step` is None or lower than the last row's.
        """
        if step is None:
            raise ValueError("metrics.csv has one row a step: call log_metrics(metrics, step=...)")
        if self._last and step < int(self._last[_STEP]):
            raise ValueError(f"log_metrics(step={step}) after step {self._last[_STEP]}: steps of metrics.csv only rise")
        check_listed(metrics)
        row = {_STEP: str(step)} | {name: _cell(value) for name, value in metrics.items()}
        joins = self._last.get(_STEP) == row[_STEP]
        if joins:
            row = self._last | row
        if row.keys() <= set(self._columns):
            with self.path.open("r+b") as stream:
                self._last_start = stream.seek(*((self._last_start,) if joins else (0, io.SEEK_END)))
                stream.write(self._lines([row]).encode())
                stream.truncate()
            self._last = row
        else:
            rows = _read(self.path) if self._columns else []
            self._rewrite([*(rows[:-1] if joins else rows), row])

    @rank_zero_only
    def truncate(self, step: int) -> None:
        """Drop the rows of `step` and after, and the columns that only they filled.

        Args:
            step: The first step that the resumed run will log again; 0 empties the file.
        """
        if self.path.exists():
            self._rewrite([row for row in _read(self.path) if int(row[_STEP]) < step])

    @rank_zero_only
    def _open(self) -> None:
        if self.path.exists():
            self._rewrite(_read(self.path))

    def _rewrite(self, rows: list[Row]) -> None:
        # The first appearance of a column in the rows gives its position in the old header.
        self._columns = list(dict.fromkeys([_STEP, *(name for row in rows for name in row)]))
        header = dict(zip(self._columns, self._columns, strict=True))
        before = self._lines([header, *rows[:-1]])
        write_text_atomic(self.path, before + self._lines(rows[-1:]))
        self._last = rows[-1] if rows else {}
        self._last_start = len(before.encode())

    def _lines(self, rows: Iterable[Row]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self._columns, lineterminator="\n").writerows(rows)
        return text.getvalue()


def _read(path: Path) -> list[Row]:
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")  # text after the last line end was cut off
    return [{name: cell for name, cell in row.items() if cell} for row in csv.DictReader(whole.splitlines())]


def _cell(value: float | Tensor) -> str:
    return repr(value.item() if hasattr(value, "item") else value)
