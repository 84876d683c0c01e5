"""Check every job before a sweep's first job starts, and count the jobs that are done."""

import os
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.markup import escape

from grace_exp.config.advice import hydra_quoted
from grace_exp.config.compose import validate
from grace_exp.config.error_messages import unknown_key
from grace_exp.config.preflight import check_machine
from grace_exp.errors import ConfigError, GraceError
from grace_exp.sweeps.folders import swept_values
from grace_exp.sweeps.stop import stop_handler
from grace_exp.sweeps.sweep_job import check_sweepable
from grace_exp.tracking.result import read_result


@dataclass(frozen=True)
class Sweep:
    """A sweep that runs in this process."""

    folder: Path
    """The sweep's folder, with a folder per job, and the table."""
    started: str
    """When, and by which process, the sweep was started; it marks its jobs' records."""
    planned: dict[str, dict[str, str]] | None
    """If the jobs are known in advance: their swept values by folder, in order."""
    metric: str | None
    """`optimized_metric` of the command."""
    minimize: bool
    """Whether the job with the lowest value is the best."""
    handlers: dict[int, Any]
    """The previous handlers of SIGINT and SIGTERM."""


_under_way: list[Sweep] = []  # Hydra owns the callback; through this list the command finds the sweep


def take_sweep() -> Sweep | None:
    """Return the sweep that this process started, once, and restore the signal handlers; None without one."""
    if not _under_way:
        return None
    sweep = _under_way.pop()
    for number, handler in sweep.handlers.items():
        signal.signal(number, handler)
    return sweep


class SweepCallback(Callback):
    """Hydra's callback; it shows a contradiction in the last job before all the others have run."""

    def __init__(self, **_: Any) -> None:
        """Accept the settings that `on_multirun_start` fills in for the jobs; they have no meaning before."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Create the folder of a single run; if Hydra failed to create it, the user would see a traceback.

        Args:
            config: The settings of the command.
            kwargs: Not used.

        Raises:
            SystemExit: With code 2, after naming the folder and why it cannot be one.
        """
        _made("hydra.run.dir", config.hydra.run.dir)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check every job of a plain grid, or both ends of another sweeper's search space; then prepare the sweep.

        The machine is checked as well if the jobs run on it.

        Args:
            config: The settings with which Hydra launches the jobs. The sweep's folder is made absolute in them, and
                the jobs are told which settings are swept.
            kwargs: Not used.

        Raises:
            SystemExit: With code 2, after naming every job that cannot run, and why.
        """
        is_grid = config.hydra.sweeper._target_.endswith(".BasicSweeper")
        jobs, swept = _jobs(config, is_grid)
        folder = Path(config.hydra.sweep.dir).absolute()
        _made("hydra.sweep.dir", folder)
        started = f"{datetime.now().isoformat(timespec='milliseconds')} {socket.gethostname()} {os.getpid()}"
        _tell_jobs(config, folder=folder, started=started, swept=swept)
        loader = GlobalHydra.instance().config_loader()
        here = not config.hydra.launcher._target_.endswith(".SlurmLauncher")
        failures: dict[str, list[str]] = {}
        planned: dict[str, dict[str, str]] = {}
        metric = None
        for number, job in enumerate(jobs):
            try:
                settings = loader.load_sweep_config(config, list(job))
                name = settings.hydra.sweep.subdir
                with open_dict(settings):
                    del settings["hydra"]
                    settings.run_dir = "."  # known when the job starts
                metric = _check(settings, is_grid=is_grid, here=here)
                planned[name] = swept_values(job, swept)
            except (GraceError, HydraException, OmegaConfBaseException) as error:
                failures.setdefault(_in_words(error), []).append(f"#{number} ({' '.join(job)})")
        if failures:
            for message, numbers in failures.items():
                sys.stderr.write(f"grace-exp: job {', '.join(numbers)}: {message}\n")
            sys.exit(2)
        _announce(folder, planned if is_grid else None)
        minimize = "minimize" in str(config.hydra.sweeper.get("direction")).lower()
        stop = stop_handler(folder, started)
        handlers: dict[int, Any] = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM)}
        _under_way.append(Sweep(folder, started, planned if is_grid else None, metric, minimize, handlers))


def _made(key: str, folder: str | Path) -> None:
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        mend = f"{key}={hydra_quoted('another/folder')}"
        sys.stderr.write(f"grace-exp: {key}={folder}: cannot be a folder ({error.strerror}); set {mend}\n")
        sys.exit(2)


def _jobs(config: DictConfig, is_grid: bool) -> tuple[Sequence[Sequence[str]], list[str]]:
    """Return the overrides of every job (for another sweeper of both ends of its search space), and the swept keys."""
    given = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    given += config.hydra.overrides.task
    loader = GlobalHydra.instance().config_loader()
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(given)
    last = {override.get_key_element(): override for override in overrides}
    swept = [key.lstrip("+") for key, override in last.items() if override.is_sweep_override()]
    if is_grid:
        return BasicSweeper.split_arguments(overrides, max_batch_size=None)[0], swept
    ends = [[f"{key}={_end(override, which)}" for key, override in last.items()] for which in (0, -1)]
    return ends, swept


def _end(override: Override, which: int) -> str:
    value = override.value()
    if isinstance(value, ChoiceSweep | RangeSweep):
        return list(override.sweep_string_iterator())[which]
    if isinstance(value, IntervalSweep):
        return str((value.start, value.end)[which])
    return str(override.get_value_element_as_str())


def _tell_jobs(config: DictConfig, *, folder: Path, started: str, swept: Sequence[str]) -> None:
    """Add to the command's overrides what jobs must know; Hydra composes each job's settings from them."""
    callback = "hydra.callbacks.sweep"
    told = [
        f"hydra.sweep.dir={hydra_quoted(str(folder))}",
        f"{callback}.started='{started}'",
        f"{callback}.process={os.getpid()}",
        f"{callback}.swept=[{','.join(map(hydra_quoted, swept))}]",
    ]
    with read_write(config), open_dict(config):
        config.hydra.overrides.hydra.extend(told)
        OmegaConf.update(config, "hydra.sweep.dir", str(folder))


def _check(settings: DictConfig, *, is_grid: bool, here: bool) -> str | None:
    """Check a job and return its `optimized_metric`."""
    checked = validate(settings)
    check_sweepable(checked)
    if checked.optimized_metric is None and not is_grid:
        raise ConfigError("optimized_metric=null: say which figure the sweeper optimises, as val/stsb/rationale")
    if here and checked.hardware.nodes > 1:
        raise ConfigError(
            f"hardware.nodes={checked.hardware.nodes}: a sweep starts runs of several machines with "
            "hydra/launcher=submitit_slurm only"
        )
    if here:
        check_machine(checked)
    return checked.optimized_metric


def _in_words(error: Exception) -> str:
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(cause, OmegaConfBaseException) and (hint := unknown_key((cause.full_key or "").split("."))):
        return f"{cause.full_key}: {hint}"
    return str(error)


def _announce(folder: Path, planned: dict[str, dict[str, str]] | None) -> None:
    done = sum(read_result(folder / name) is not None for name in planned or ())
    jobs = "" if planned is None else f"{len(planned)} jobs, {done} finished before  "
    Console().print(f"[bold]sweep[/bold]  {jobs}folder {escape(str(folder))}", highlight=False, soft_wrap=True)
