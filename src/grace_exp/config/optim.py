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
    """Reached after the warm-up."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled from the gradient, as AdamW has it."""
    beta1: Beta = 0.9
    """Of AdamW: decay of the gradient's mean."""
    beta2: Beta = 0.999
    """Of AdamW: decay of the squared gradient's mean."""
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """Of AdamW: added to the denominator."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Gradients are clipped to this norm; null: not clipped."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up; linear and cosine fall to 0 at the last step."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """In optimizer updates."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """A loss or gradient that is nan or inf: stop with the batch saved, or skip that update and count it."""
