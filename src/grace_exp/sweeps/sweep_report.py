"""The report at the end of a sweep: a table on the terminal, sweep.csv, sweep.json."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from grace_exp.config.advice import override
from grace_exp.sweeps.child import OUTPUT_FILE, exit_text
from grace_exp.sweeps.folders import short_names, short_value
from grace_exp.sweeps.record import JobRecord, read_records
from grace_exp.sweeps.start import Sweep
from grace_exp.sweeps.stop import wait_until_free
from grace_exp.tracking.atomic import write_text_atomic
from grace_exp.tracking.summary import write_json_atomic

_TRAINING = {"reward/total/mean": "reward", "embed/in_batch_accuracy": "in-batch"}
"""Training metrics in the table, with their headings; held-out results are always shown."""

_PATIENCE = 3.0  # seconds that a killed job may take to end; a job on a cluster may run on


@dataclass(frozen=True)
class _Row:
    folder: str
    record: JobRecord | None
    swept: Mapping[str, str]

    @property
    def status(self) -> str:
        return self.record.status if self.record else "not started"

    @property
    def figures(self) -> Mapping[str, float | None]:
        return self.record.figures if self.record else {}


def report(sweep: Sweep, console: Console) -> bool:
    """Print the table and the failures; write `sweep.csv` and `sweep.json` into the sweep's folder.

    Args:
        sweep: The sweep; its jobs' records are read from its folder.
        console: The console to print to.

    Returns:
        Whether a job failed.
    """
    rows = _rows(sweep)
    if not rows:
        return False
    best = _best(rows, sweep)
    keys = list(dict.fromkeys(key for row in rows for key in row.swept))
    _write_files(sweep, rows, keys, best)
    best_of = f", * {'lowest' if sweep.minimize else 'highest'} {sweep.metric}" if sweep.metric is not None else ""
    console.print(f"\n[bold]{escape(sweep.folder.name)}[/bold]{escape(best_of)}", highlight=False, soft_wrap=True)
    console.print(_table(sweep, rows, keys, best))
    counts = {status: sum(row.status == status for row in rows) for status in dict.fromkeys(row.status for row in rows)}
    summary = ", ".join(f"{count} {status}" for status, count in counts.items())
    console.print(
        f"{len(rows)} jobs: {summary}. Table: {escape(str(sweep.folder / 'sweep.csv'))}",
        highlight=False,
        soft_wrap=True,
    )
    failed = [row for row in rows if row.status == "failed"]
    for row in failed:
        _print_failure(sweep, row, console)
    if counts.keys() - {"finished"}:
        console.print(
            f"The same command and {escape(override('hydra.sweep.dir', sweep.folder))} runs what is missing.",
            highlight=False,
            soft_wrap=True,
        )
    return bool(failed)


def _rows(sweep: Sweep) -> list[_Row]:
    records = {name: r for name, r in read_records(sweep.folder).items() if r.sweep == sweep.started}
    for name, record in records.items():
        if record.status == "running" and wait_until_free(sweep.folder / name, _PATIENCE):
            record.status = "interrupted"  # its process was killed, and so was the one that watched it
            record.write(sweep.folder / name)
    if sweep.planned is not None:
        return [_Row(name, records.get(name), swept) for name, swept in sweep.planned.items()]
    chosen = sorted(records.items(), key=lambda item: item[1].number)
    return [_Row(name, record, record.swept) for name, record in chosen]


def _best(rows: Sequence[_Row], sweep: Sweep) -> str | None:
    """Return the folder of the job with the best value; None if no job has one."""
    figures = {
        row.folder: value
        for row in rows
        if sweep.metric is not None
        and row.status == "finished"
        and (value := row.figures.get(sweep.metric)) is not None
    }
    return (min if sweep.minimize else max)(figures, key=lambda folder: figures[folder], default=None)


def _table(sweep: Sweep, rows: Sequence[_Row], keys: Sequence[str], best: str | None) -> Table:
    metrics = _columns(sweep, rows)
    names = short_names(keys)
    table = Table(box=SIMPLE_HEAD)
    table.add_column("job", justify="right")
    for key in keys:
        table.add_column(escape(names[key].replace(".", "\n")))
    for metric in metrics:
        mark = "* " if metric == sweep.metric else ""
        table.add_column(mark + escape(_TRAINING.get(metric, metric.replace("/", "/\n"))), justify="right")
    table.add_column("seconds", justify="right")
    table.add_column("")
    for number, row in enumerate(rows):
        seconds = row.record.seconds if row.record else None
        status = "earlier" if row.record and row.record.skipped else row.status
        table.add_row(
            str(number),
            *(escape(short_value(row.swept.get(key, ""))) for key in keys),
            *(_number(row.figures.get(metric)) for metric in metrics),
            "" if seconds is None else f"{seconds:.0f}",
            f"{status} *" if row.folder == best else status,
            style="bold" if row.folder == best else "red" if row.status == "failed" else None,
        )
    return table


def _columns(sweep: Sweep, rows: Sequence[_Row]) -> list[str]:
    present = list(dict.fromkeys(metric for row in rows for metric in row.figures))
    heldout = sorted(metric for metric in present if metric.startswith("val/"))
    wanted = [*([sweep.metric] if sweep.metric else []), *heldout, *_TRAINING]
    return [metric for metric in dict.fromkeys(wanted) if metric in present]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _print_failure(sweep: Sweep, row: _Row, console: Console) -> None:
    assert row.record is not None
    values = " ".join(f"{key}={value}" for key, value in row.swept.items())
    how = f", {exit_text(row.record.exit_code)}" if row.record.exit_code else ""
    text = f"\n[bold red]failed[/bold red]: {escape(values or row.folder)}{how}"
    console.print(text, highlight=False, soft_wrap=True)
    console.print(f"  {escape(str(sweep.folder / row.folder / OUTPUT_FILE))}", highlight=False, soft_wrap=True)
    for line in row.record.error:
        console.print(f"  | {escape(line)}", highlight=False, soft_wrap=True)


def _write_files(sweep: Sweep, rows: Sequence[_Row], keys: Sequence[str], best: str | None) -> None:
    metrics = sorted({metric for row in rows for metric in row.figures})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["folder", "status", "seconds", *keys, *metrics])
    for row in rows:
        seconds = row.record.seconds if row.record else None
        values = [row.swept.get(key, "") for key in keys]
        writer.writerow([row.folder, row.status, seconds, *values, *(row.figures.get(metric) for metric in metrics)])
    write_text_atomic(sweep.folder / "sweep.csv", text.getvalue())
    jobs: list[dict[str, Any]] = [
        {"folder": row.folder, "status": row.status, "swept": dict(row.swept)}
        | (asdict(row.record) if row.record else {})
        for row in rows
    ]
    write_json_atomic(
        sweep.folder / "sweep.json",
        {
            "started": sweep.started,
            "optimized_metric": sweep.metric,
            "direction": "minimize" if sweep.minimize else "maximize",
            "best": best,
            "jobs": jobs,
        },
    )
