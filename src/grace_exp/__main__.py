"""The command line: compose, check, run the chosen job."""

import errno
import os
import sys
from contextlib import nullcontext
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

import grace_exp.openmp  # noqa: F401 - before torch
from grace_exp.config.advice import override
from grace_exp.config.compose import conf_dir, validate
from grace_exp.config.error_messages import unknown_choice, unknown_key
from grace_exp.config.preflight import check_machine
from grace_exp.config.root import GraceConfig
from grace_exp.errors import GraceError
from grace_exp.jobs import run
from grace_exp.jobs.terminal import stdout_for_machines
from grace_exp.late_imports import imports_are_done, start_quickly
from grace_exp.sweeps.start import take_sweep
from grace_exp.tracking.command_record import record_command
from grace_exp.tracking.result import RESULT_FILE, write_result
from grace_exp.tracking.run_folder import claimed

_EXIT_CODE = 2
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
_INTERRUPTED = 130  # the exit code that shells use for SIGINT


def run_job(settings: DictConfig) -> float | None:
    """Run the job; Hydra calls this. A job of a sweep runs in its own process."""
    if HydraConfig.get().mode is RunMode.MULTIRUN:
        imports_are_done()
        from grace_exp.sweeps.sweep_job import run_sweep_job

        return run_sweep_job(settings)
    try:
        config = validate(settings)
        with stdout_for_machines(config.job.name == "train" and config.callbacks.progress == "json"):
            check_machine(config)
            _run_to_result(config, settings)
    except GraceError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        sys.stderr.write(f"grace-exp: {error}\n")
        sys.exit(_EXIT_CODE)
    except OSError as error:
        if error.errno not in _OF_THE_DISK or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        sys.stderr.write(
            f"grace-exp: {error.strerror}: {error.filename2 or error.filename or settings.run_dir}. Make room there, "
            f"or make it writable; a training run continues with the same command and "
            f"{override('job.resume', settings.job.resume or settings.run_dir)}\n"
        )
        sys.exit(_EXIT_CODE)
    return None


def _run_to_result(config: GraceConfig, settings: DictConfig) -> None:
    from grace_exp.jobs.terminal import is_first_process
    from grace_exp.training.resume import check_new, run_folder

    trains = config.job.name == "train"
    resumed = config.job.resume if trains else None
    run_dir = Path(config.run_dir) if resumed is None else run_folder(resumed)
    with claimed(run_dir, config.job.name) if is_first_process() else nullcontext():
        if trains and resumed is None:
            check_new(run_dir)
        if is_first_process():
            record_command(settings, HydraConfig.get(), Path(config.run_dir))
        if not trains:  # training writes its result itself, as the last thing of its end
            (run_dir / RESULT_FILE).unlink(missing_ok=True)
        figures = run(config)
        if not trains and is_first_process():
            write_result(run_dir, figures)


def main() -> None:
    """Start `python -m grace_exp` and `grace-exp`; exit with 2 after an error that the user can mend."""
    start_quickly()
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(run_job)()
    except SystemExit as stop:
        failure = stop.__context__  # Hydra has shown it already
        if isinstance(failure, CompactHydraException) and isinstance(failure.__cause__, OmegaConfBaseException):
            hint = unknown_key((failure.__cause__.full_key or "").split("."))
            if hint:
                sys.stderr.write(f"grace-exp: {failure.__cause__.full_key}: {hint}\n")
                sys.exit(_EXIT_CODE)
        if isinstance(failure, MissingConfigException) and (hint := unknown_choice(failure)):
            sys.stderr.write(f"grace-exp: {hint}\n")
            sys.exit(_EXIT_CODE)
        raise
    except KeyboardInterrupt:
        sys.stderr.write(
            "grace-exp: interrupted; to finish a training run, repeat the command with job.resume=FOLDER\n"
        )
        sys.exit(_INTERRUPTED)
    finally:
        imports_are_done()
        failed = _report_sweep()
    if failed:
        sys.exit(_EXIT_CODE)


def _report_sweep() -> bool:
    """Print the table of a sweep, also of an interrupted one, and return whether a job failed."""
    sweep = take_sweep()
    if sweep is None:
        return False
    from rich.console import Console

    from grace_exp.sweeps.sweep_report import report

    return report(sweep, Console())


if __name__ == "__main__":
    main()
