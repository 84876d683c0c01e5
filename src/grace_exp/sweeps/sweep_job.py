"""One job of a sweep, called by Hydra's launchers: skip it, resume it, or start it, in a separate process."""

import difflib
import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape

from grace_exp.config.advice import hydra_quoted
from grace_exp.config.compose import validate
from grace_exp.config.engine_use import engine_of
from grace_exp.config.root import GraceConfig
from grace_exp.errors import ConfigError, GraceError
from grace_exp.sweeps.child import OUTPUT_FILE, ChildProcess, exit_text
from grace_exp.sweeps.folders import short_names, short_value, swept_values
from grace_exp.sweeps.own_gpus import own_gpus, wanted_gpus
from grace_exp.sweeps.record import JobRecord, alone_in, read_record
from grace_exp.tracking.result import RESULT_FILE, read_result

# Hydra's own settings of the command that belong to the sweep, not to a job.
_OF_THE_SWEEP = re.compile(r"[+~]*hydra[./](mode|sweep|sweeper|launcher|run|callbacks|hydra_logging)\b")
_LONGEST_TAG = 64  # W&B's limit


def run_sweep_job(settings: DictConfig) -> float | None:
    """Run one job as a child process; `job.json` in its folder records how it ended.

    A job that fails does not raise: the other jobs run, and the sweep's report names the failed one.

    Args:
        settings: The job's composed settings without Hydra's node, which `HydraConfig` holds.

    Returns:
        The value of `optimized_metric`; None if it is not set or the job failed, which Optuna counts as a failed
        trial.

    Raises:
        SystemExit: A signal asked for the end of the sweep; the job has ended before.
    """
    hydra: Any = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    sweep = hydra.callbacks.sweep
    if os.environ.get("SLURM_PROCID", "0") != "0":  # of several processes of this job, the first writes the record
        _take_part(settings, hydra, folder)
        return None
    swept = swept_values(hydra.overrides.task, sweep.swept)
    record = JobRecord(sweep=sweep.started, number=hydra.job.num, swept=swept)
    try:
        config = validate(settings)
    except GraceError as error:  # the sweeper chose this job during the sweep, so it was not checked before
        record.status, record.error = "failed", str(error).splitlines()
        return _ended(record, folder, None)
    with alone_in(folder) as lock:
        figures = read_result(folder)
        earlier = read_record(folder)
        if figures is not None:
            record.status, record.skipped, record.figures = "finished", True, figures
            record.seconds = earlier.seconds if earlier else None
            return _ended(record, folder, config)
        resume = _checkpoint_to_resume(config, folder)
        record.resumed = resume.name if resume else None
        command = _command(hydra, config, folder, swept, resume)
        # Slurm itself gives every job its devices.
        wanted = 0 if hydra.launcher._target_.endswith("SlurmLauncher") else wanted_gpus(config)
        with own_gpus(wanted, lambda: _say(record, f"waits for {wanted} free GPU(s)")) as gpus:
            record.write(folder)
            _say(record, "started" if resume is None else f"continues from {resume.name}")
            begin = time.monotonic()
            child = ChildProcess(
                command,
                folder / OUTPUT_FILE,
                cwd=Path(hydra.runtime.cwd),
                keep_open=[lock, *gpus.locks],
                environment=gpus.environment,
                fork=_may_be_forked(hydra, config),
            )
            record.exit_code, stopped_by = child.wait(sweep.process)
        record.seconds = time.monotonic() - begin
        figures = read_result(folder)
        if record.exit_code == 0 and figures is not None:
            record.status, record.figures = "finished", figures
        elif record.exit_code == 0:
            record.status = "failed"
            record.error = [
                *child.last_words(),
                f"it ended with exit code 0 and left no {RESULT_FILE}: it is not complete",
            ]
        else:
            record.status = "failed" if stopped_by is None else "interrupted"
            record.error = child.last_words()
        value = _ended(record, folder, config)
    if stopped_by is not None:
        sys.exit(128 + stopped_by)
    return value


def _may_be_forked(hydra: Any, config: GraceConfig) -> bool:
    """Whether a job may be forked from the warm process; a job that starts processes begins as a new Python."""
    alone = config.hardware.devices * config.hardware.nodes == 1 and engine_of(config) == "transformers"
    submitted = hydra.launcher._target_.endswith(("SlurmLauncher", "submitit_launcher.LocalLauncher"))
    return bool(hydra.callbacks.sweep.warm) and sys.platform == "linux" and alone and not submitted


def check_sweepable(config: GraceConfig) -> None:
    """Refuse settings that make sense for a single run only.

    Raises:
        ConfigError: The job would continue in the folder of another run.
    """
    if config.job.name == "train" and config.job.resume is not None:
        raise ConfigError(
            "job.resume in a sweep of training runs: leave it out; the same sweep started again continues where it was"
        )


def _take_part(settings: DictConfig, hydra: Any, folder: Path) -> None:
    config = validate(settings)
    resume = _checkpoint_to_resume(config, folder)
    if read_result(folder) is None:
        output = folder / f"output.{os.environ['SLURM_PROCID']}.log"
        command = _command(hydra, config, folder, {}, resume)
        ChildProcess(command, output, cwd=Path(hydra.runtime.cwd)).wait(hydra.callbacks.sweep.process)


def _checkpoint_to_resume(config: GraceConfig, folder: Path) -> Path | None:
    """Return the newest checkpoint of an interrupted training run; without one, delete `checkpoints`.

    A run that was killed between its last step and its result finishes its end.
    """
    if config.job.name != "train":
        return None
    found = [
        path
        for path in (folder / "checkpoints").glob("step-*.ckpt")
        if int(path.stem.removeprefix("step-")) <= config.job.steps
    ]
    if not found:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return max(found, default=None)


def _command(hydra: Any, config: GraceConfig, folder: Path, swept: dict[str, str], resume: Path | None) -> list[str]:
    config_dirs = [
        f"--config-dir={source.path}" for source in hydra.runtime.config_sources if source.provider == "command-line"
    ]
    names = ["--config-name", hydra.job.config_name] if hydra.job.config_name != "config" else []
    overrides = [
        *(override for override in hydra.overrides.hydra if not _OF_THE_SWEEP.match(override)),
        *hydra.overrides.task,
        f"hydra.run.dir={hydra_quoted(str(folder))}",
        *_wandb_overrides(config, folder.parent.name, swept),
        *([f"job.resume={hydra_quoted(str(resume))}"] if resume else []),
    ]
    return [sys.executable, "-m", "grace_exp", *config_dirs, *names, *overrides]


def _wandb_overrides(config: GraceConfig, group: str, swept: dict[str, str]) -> list[str]:
    """Return overrides for W&B: one group per sweep, and tags with each run's swept values."""
    wandb = config.logger.wandb
    if wandb is None:
        return []
    names = short_names(swept)
    tags = [*wandb.tags, *(f"{names[key]}={value}"[:_LONGEST_TAG] for key, value in swept.items())]
    return [
        *([f"logger.wandb.group={hydra_quoted(group)}"] if wandb.group is None else []),
        f"logger.wandb.tags=[{','.join(map(hydra_quoted, tags))}]",
    ]


def _ended(record: JobRecord, folder: Path, config: GraceConfig | None) -> float | None:
    metric = config.optimized_metric if config is not None and record.status == "finished" else None
    if metric is not None and metric not in record.figures:
        record.status = "failed"
        nearest = difflib.get_close_matches(metric, record.figures, n=1)
        hint = f" (did you mean {nearest[0]}?)" if nearest else ""
        record.error = [
            f"optimized_metric={metric}: no such figure{hint}; the job ended well, its figures are in sweep.csv"
        ]
    record.write(folder)
    if record.status == "finished":
        _say(record, "had finished before" if record.skipped else f"finished in {record.seconds:.0f} s")
    elif record.status == "failed":
        killed = record.exit_code is not None and record.exit_code < 0
        why = exit_text(record.exit_code) if killed or not record.error else record.error[-1]
        _say(record, f"[bold red]failed[/bold red]: {escape(why)}")
    return record.figures.get(metric) if metric is not None else None


def _say(record: JobRecord, what: str) -> None:
    names = short_names(record.swept)
    values = [f"{names[key]}={short_value(value)}" for key, value in record.swept.items()]
    console = Console()
    console.print(f"job {record.number}  {escape(' '.join(values))}  {what}", highlight=False, soft_wrap=True)
