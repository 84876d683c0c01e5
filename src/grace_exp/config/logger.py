"""Where metrics go beside the run folder's CSV, which is always written."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from grace_exp.config.base import STRICT


@dataclass(config=STRICT, frozen=True, kw_only=True)
class WandbConfig:
    """Weights & Biases."""

    mode: Literal["auto", "online", "offline"] = "auto"
    """auto: online with a login, offline without (`wandb sync` uploads it later)."""
    project: Annotated[str, Field(min_length=1)] = "grace-exp"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = Field(default_factory=list)


@dataclass(config=STRICT, frozen=True, kw_only=True)
class LoggerConfig:
    """Metrics and samples."""

    wandb: WandbConfig | None = None
    """null: CSV and parquet only."""
    samples_every_n_steps: Annotated[int, Field(ge=0)] = 10
    """How often rollouts are written to the samples table; 0: never."""
    samples_per_step: Annotated[int, Field(ge=1)] = 16
    """Rollouts a time, whole groups first."""
