"""Weights & Biases: one W&B run for one run folder, on the server or on disk."""

import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger, WandbLogger

from grace_exp.config.logger import WandbConfig, WandbMode, wandb_mode
from grace_exp.config.root import GraceConfig
from grace_exp.errors import MissingResourceError
from grace_exp.tracking.atomic import write_text_atomic
from grace_exp.tracking.metrics import check_listed

if TYPE_CHECKING:
    import wandb

_ID_FILE = "wandb_run_id.txt"


class StepWandbLogger(WandbLogger):
    """Lightning's logger, with W&B's own step set to the run's step.

    Lightning counts log calls and logs the step as a metric, so a resumed run would have its repeated steps twice. With
    explicit steps W&B merges everything that belongs to one step.
    """

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Send the metrics of one step, unless the server already has that step (in a resumed run).

        Args:
            metrics: Numbers, tables and other W&B values by name.
            step: The step that they belong to; W&B ignores a step below that of an earlier call, with a warning.

        Raises:
            ValueError: `step` is None.
        """
        if step is None:
            raise ValueError("W&B rows are keyed by the step: call log_metrics(metrics, step=...)")
        check_listed(metrics)
        if step >= self.experiment.starting_step:
            self.experiment.log(dict(metrics), step=step)


def build_wandb_logger(
    config: GraceConfig, provenance: Mapping[str, Any] | None = None, *, resume_id: str | None = None
) -> WandbLogger:
    """Start the W&B run and wrap it as a Lightning logger. End it with `finishing`.

    The mode is that of the environment variable WANDB_MODE, or else `logger.wandb.mode`, where `auto` is online with a
    login and offline without. The run's files are in `<run_dir>/wandb`, its id in `<run_dir>/wandb_run_id.txt`. A W&B
    run that is still open in this process is not touched. W&B prints nothing, and records neither console output nor
    code nor the git repository.

    Args:
        config: The resolved configuration, sent as the run's config; `logger.wandb` must be set.
        provenance: Sent as config key `provenance`, see `grace_exp.tracking.provenance`.
        resume_id: The W&B run to continue, see `stored_run_id`; None: a new one is started.

    Returns:
        The logger. On processes of rank above 0 it has no run and drops all input.

    Raises:
        ConfigError: WANDB_MODE has a value that wandb does not know.
        MissingResourceError: The mode is online, but there is no login or the server does not answer.
    """
    settings = config.logger.wandb
    if settings is None:
        raise ValueError("logger.wandb is null: there is no W&B run to build")
    run = _start_run(config, settings, provenance, resume_id)
    return StepWandbLogger(project=settings.project, save_dir=config.run_dir, experiment=run)


def stored_run_id(run_dir: Path) -> str | None:
    """Return the id of the W&B run that belongs to a run folder; None if it never had one."""
    path = run_dir / _ID_FILE
    return path.read_text(encoding="utf-8").strip() if path.exists() else None


@contextmanager
def finishing(loggers: Iterable[Logger]) -> Iterator[None]:
    """End the loggers when the block ends; mark them as failed if it raises.

    wandb gives a run that is still open to the next caller (the next job of a sweep, the next test), and keeps unsent
    rows until the run is finished. So this must enclose all uses of the loggers.
    """
    exit_code = 1
    try:
        yield
        exit_code = 0
    finally:
        for logger in loggers:
            logger.finalize("failed" if exit_code else "success")
            if isinstance(logger, WandbLogger):
                _finish(logger, exit_code)


@rank_zero_only
def _finish(logger: WandbLogger, exit_code: int) -> None:
    cast("wandb.Run", logger.experiment).finish(exit_code=exit_code)


@rank_zero_only
def _start_run(
    config: GraceConfig, settings: WandbConfig, provenance: Mapping[str, Any] | None, resume_id: str | None
) -> "wandb.Run":
    import wandb

    _forget_empty_variables()
    mode = _mode(settings.mode)
    run_id = resume_id or secrets.token_hex(4)
    # Written first, because this also creates the folder; without it wandb would use a temporary one.
    write_text_atomic(Path(config.run_dir) / _ID_FILE, run_id + "\n")
    try:
        return wandb.init(
            mode=mode,
            project=settings.project,
            entity=settings.entity,
            group=settings.group,
            job_type=settings.job_type or config.job.name,
            notes=settings.notes,
            tags=settings.tags,
            name=config.name,
            dir=config.run_dir,
            id=run_id,
            resume="allow",
            reinit="create_new",
            config=asdict(config) | {"provenance": dict(provenance or {})},
            save_code=False,
            settings=wandb.Settings(
                silent=True, console="off", disable_git=True, disable_code=True, disable_job_creation=True
            ),
        )
    except wandb.Error as error:
        raise MissingResourceError(
            f"W&B run could not be started in mode {mode}: {error}\n"
            "Set logger.wandb.mode=offline (upload later with `wandb sync`), or logger=csv for no W&B."
        ) from error


def _forget_empty_variables() -> None:
    """Unset variables that are empty: wandb would read the empty text as a value, and refuse it."""
    for name in [name for name, value in os.environ.items() if name.startswith("WANDB_") and not value]:
        del os.environ[name]


def _mode(configured: Literal["auto", "online", "offline"]) -> WandbMode:
    from_environment = wandb_mode()
    if from_environment:
        mode = from_environment
    elif configured == "auto":
        return "online" if _wants_and_can_upload() else "offline"
    else:
        mode = configured
    if mode == "online" and not has_login():
        raise MissingResourceError(
            "W&B mode is online, but there is no login: run `wandb login`, set WANDB_API_KEY, or set "
            "logger.wandb.mode=offline"
        )
    return mode


def _wants_and_can_upload() -> bool:
    import wandb

    # `wandb offline` and `wandb disabled` store this choice in wandb's settings file.
    return wandb.setup().settings.mode in {"online", "run"} and has_login()


def has_login() -> bool:
    """Return whether wandb would find credentials for its server: environment, netrc file or its own settings."""
    import wandb
    from wandb.sdk.lib import wbauth

    try:
        auth = wbauth.authenticate_session(
            host=wandb.setup().settings.base_url, source="grace-exp", prompt=False, update_session=False
        )
    except wandb.errors.AuthenticationError as error:
        raise MissingResourceError(f"W&B login: {error}") from error
    return auth is not None
