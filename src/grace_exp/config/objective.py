"""From rewards to a loss."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from grace_exp.config.base import STRICT


@dataclass(config=STRICT, frozen=True, kw_only=True)
class KlConfig:
    """Penalty for leaving the reference model, added to the loss per token."""

    coefficient: Annotated[float, Field(ge=0)] = 0.0
    """0: the reference model is not loaded and not run."""
    estimator: Literal["k1", "k2", "k3"] = "k3"
    """Of KL(policy || reference) from samples of the policy (Schulman, http://joschu.net/blog/kl-approx.html)."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class ObjectiveConfig:
    """Clipped policy gradient with group-relative advantages."""

    name: Literal["grpo"] = "grpo"
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    clip_high: Annotated[float, Field(gt=0)] = 0.2
    """The probability ratio is clipped to [1 - clip_low, 1 + clip_high]."""
    advantage_scale: Literal["none", "group_std", "batch_std"] = "none"
    """Advantages are centred per group, then divided by: nothing (paper), the group's or the batch's std."""
    mini_batch_size: Annotated[int, Field(ge=1)] = 16
    """Instances per optimizer update, over all processes."""
    kl: KlConfig = Field(default_factory=KlConfig)
