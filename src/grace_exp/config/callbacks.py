"""What happens around the steps."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from grace_exp.config.base import STRICT

Export = Literal["adapter", "merged"]


@dataclass(config=STRICT, frozen=True, kw_only=True)
class CheckpointConfig:
    """Resumable checkpoints: weights that train, optimizer, data position."""

    every_n_steps: Annotated[int, Field(ge=0)] = 50
    """0: only the last one, when training ends or is interrupted."""
    keep: Annotated[int, Field(ge=1)] = 2
    """Newest checkpoints kept."""
    monitor: Annotated[str, Field(pattern=r"^(embed/augmentation_overlap|val/[^/]+/rationale)$")] | None = None
    """The metric whose best step is kept too, as best.ckpt: `embed/augmentation_overlap`, which needs no label, or
    `val/<set>/rationale`, measured every evaluation.every_n_steps; null: no such checkpoint."""
    mode: Literal["max", "min"] | None = None
    """What is best; null: the least overlap, the highest held-out figure."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class CallbacksConfig:
    """Checkpoints, export and the progress display."""

    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    progress: Literal["bar", "lines", "none"] = "bar"
    """bar: live; lines: one line a step, for logs."""
    export: list[Export] = Field(default_factory=lambda: list[Export](["merged"]))
    """Written at the end in Hugging Face format; `adapter` needs LoRA."""
