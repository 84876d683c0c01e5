"""Where metrics go in addition to the run folder's CSV, which is always written."""

import os
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from grace_exp.config.base import STRICT
from grace_exp.errors import ConfigError

WandbMode = Literal["online", "offline", "disabled", "shared"]

_ENVIRONMENT_MODES: dict[str, WandbMode] = {
    "online": "online",
    "offline": "offline",
    "disabled": "disabled",
    "shared": "shared",
    "run": "online",  # the last two are wandb's old names
    "dryrun": "offline",
}


def wandb_mode() -> WandbMode | None:
    """Return the mode that the environment variable WANDB_MODE asks for; None if it is not set or empty.

    Raises:
        ConfigError: It has a value that wandb does not know.
    """
    mode = os.environ.get("WANDB_MODE")
    if not mode:
        return None
    if mode not in _ENVIRONMENT_MODES:
        raise ConfigError(f"environment variable WANDB_MODE={mode!r}: allowed are {', '.join(_ENVIRONMENT_MODES)}")
    return _ENVIRONMENT_MODES[mode]


@dataclass(config=STRICT, frozen=True, kw_only=True)
class WandbConfig:
    """Weights & Biases."""

    mode: Literal["auto", "online", "offline"] = "auto"
    """auto: online if logged in, otherwise offline (`wandb sync` uploads the run later)."""
    project: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^/\\\\#?%:\r\n]*$")] = "grace-exp"
    """Where the run is shown on W&B."""
    entity: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """User or team on W&B; null: the login's default."""
    group: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """W&B shows the runs of one group together."""
    job_type: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """W&B's job type; null: the job's name."""
    tags: list[Annotated[str, Field(min_length=1, max_length=64)]] = Field(default_factory=list)
    """Tags of 1 to 64 characters; W&B takes names of 128 characters at most."""
    notes: str | None = None
    """A description of the run, in Markdown."""
    upload_export: bool = True
    """Upload the exported models as artifacts; false: large models stay on this machine."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class LoggerConfig:
    """Metrics and samples."""

    wandb: WandbConfig | None = None
    """Weights & Biases; null: CSV and parquet files only."""
    samples_every_n_steps: Annotated[int, Field(ge=0)] = 10
    """Steps between writes to the samples table; 0: never."""
    samples_per_step: Annotated[int, Field(ge=1)] = 16
    """Rollouts per write, whole groups first."""
    evolution_every_n_steps: Annotated[int, Field(ge=0)] = 50
    """Steps between writes of new rationales for the same texts, for the evolution table; also before the first step
    and after the last one. 0: never. One time costs about evolution_texts / job.batch_size of a step's rollouts."""
    evolution_texts: Annotated[int, Field(ge=2)] = 4
    """Number of texts in the evolution table, on each process."""
