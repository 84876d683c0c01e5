"""What the command does."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from grace_exp.config.base import STRICT


@dataclass(config=STRICT, frozen=True, kw_only=True)
class JobConfig:
    """The job and its size."""

    name: Literal["train", "evaluate", "prepare_data"] = "train"
    steps: Annotated[int, Field(ge=1)] = 1000
    """GRACE steps: rollouts, rewards, then batch_size / mini_batch_size optimizer updates."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Instances a step, over all processes."""
    resume: str | None = None
    """A checkpoint file, or a run folder whose newest checkpoint is taken."""
    small_experiment: str | None = None
    """The experiment that shows the same without GPU or hub; named in the error when this one cannot run."""
