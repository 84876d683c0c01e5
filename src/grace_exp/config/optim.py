"""The optimizer."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from grace_exp.config.base import STRICT

Beta = Annotated[float, Field(ge=0, lt=1)]


@dataclass(config=STRICT, frozen=True, kw_only=True)
class OptimConfig:
    """AdamW (torch)."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-6
    """Learning rate after the warm-up."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Weight decay, decoupled from the gradient as in AdamW."""
    beta1: Beta = 0.9
    """AdamW: decay rate of the gradient's mean."""
    beta2: Beta = 0.999
    """AdamW: decay rate of the squared gradient's mean."""
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """AdamW: added to the denominator."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """The gradient norm is clipped to this; null: no clipping."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate after the warm-up; linear and cosine fall to 0 at the last step."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Length of the warm-up, in optimizer updates."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What happens when a loss or gradient is nan or inf: stop and save the batch, or skip that update and count it."""
