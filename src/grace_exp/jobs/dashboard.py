"""Build the W&B workspace and report of a run or a sweep."""

from pathlib import Path
from typing import Any

from grace_exp.config.root import GraceConfig
from grace_exp.errors import ConfigError, MissingResourceError
from grace_exp.jobs.terminal import our_console
from grace_exp.review.run_files import RunFiles, UnreadableRun, is_sweep, read_run
from grace_exp.review.sweep_page import sweep_page
from grace_exp.review.verdict import verdict
from grace_exp.review.wandb_dashboard import Shown, build_report, build_workspace, publish, write_specs
from grace_exp.tracking.samples import EVOLUTION_FOLDER, EVOLUTION_TABLE, SAMPLES_FOLDER, SAMPLES_TABLE
from grace_exp.tracking.wandb_logger import has_login, stored_run_id

_DEFAULT_PROJECT = "grace-exp"


def dashboard(config: GraceConfig) -> dict[str, float]:
    """Write `dashboard/workspace.json` and `dashboard/report.json`; with `job.publish`, save both on W&B.

    Args:
        config: `job.run` names one folder.

    Returns:
        An empty dict.

    Raises:
        ConfigError: `job.run` is a list.
        UnreadableRun: The folder holds neither a run nor a sweep with a readable job.
        MissingResourceError: W&B cannot be used; the message says what is missing.
    """
    folders = config.job.run_folders
    if len(folders) > 1:
        raise ConfigError("job=dashboard takes one folder, of a run or of a sweep: job.run=<folder>")
    folder = Path(folders[0]).expanduser()
    console = our_console()
    shown = sweep_shown(folder) if is_sweep(folder) else run_shown(read_run(folder))
    workspace, report = build_workspace(shown), build_report(shown)
    for path in write_specs(folder, workspace, report):
        console.print(f"written: {path}", highlight=False, markup=False, soft_wrap=True)
    if shown.run_id is None and shown.baseline is None:
        text = "No W&B run belongs to this folder (logger=csv): its panels stay empty until runs with logger=wandb log."
        console.print(text, highlight=False, soft_wrap=True)
    if config.job.publish:
        if not has_login():
            raise MissingResourceError(
                "job.publish=true needs a W&B login: run `wandb login`, or set WANDB_API_KEY. The files are written"
            )
        for address in publish(workspace, report):
            console.print(f"saved: {address}", highlight=False, markup=False, soft_wrap=True)
    return {}


def run_shown(run: RunFiles) -> Shown:
    """Return the contents of the dashboard of one run."""
    return Shown(
        title=run.name,
        logged=list(run.metrics),
        tables=_tables([run.path]),
        run_id=stored_run_id(run.path),
        verdict=verdict(run).sentence,
        **_place(run.config),
    )


def sweep_shown(folder: Path) -> Shown:
    """Return the contents of the dashboard of a sweep; jobs that cannot be read are left out.

    Raises:
        UnreadableRun: No job of the sweep can be read.
    """
    page = sweep_page(folder)
    runs = []
    for job in page["jobs"]:
        try:
            runs.append(read_run(folder / job["folder"]))
        except UnreadableRun:
            continue
    if not runs:
        raise UnreadableRun(f"{folder}: no job of this sweep has a readable folder yet")
    best = page["best"]
    sentence = ""
    if best is not None:
        interval = f" [{best['low']:.4g}, {best['high']:.4g}]" if best["low"] is not None else ""
        sentence = f"Best: {' '.join(best['settings'])}, {page['metric']} {best['value']:.4g}{interval}."
    return Shown(
        title=f"Sweep {folder.name}",
        logged=list(dict.fromkeys(name for run in runs for name in run.metrics)),
        tables=_tables([run.path for run in runs]),
        group=folder.absolute().name,
        verdict=sentence,
        swept=list(page["keys"]),
        metric=page["metric"],
        baseline=next((run_id for run in runs if (run_id := stored_run_id(run.path)) is not None), None),
        summary_keys=page["figures"],
        **_place(runs[0].config),
    )


def _place(settings: Any) -> dict[str, str]:
    wandb = settings["logger"]["wandb"] or {}
    return {"project": wandb.get("project", _DEFAULT_PROJECT), "entity": wandb.get("entity") or ""}


def _tables(folders: list[Path]) -> list[str]:
    tables = {SAMPLES_TABLE: SAMPLES_FOLDER, EVOLUTION_TABLE: EVOLUTION_FOLDER}
    return [key for key, name in tables.items() if any((folder / name).is_dir() for folder in folders)]
