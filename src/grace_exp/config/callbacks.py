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


Share = Annotated[float, Field(gt=0, lt=1)] | None


@dataclass(config=STRICT, frozen=True, kw_only=True)
class WatchdogConfig:
    """When a run is said to collapse: a threshold is crossed in `patience` steps in a row. null: not watched."""

    patience: Annotated[int, Field(ge=1)] = 5
    """Steps in a row. A single step is one small batch, whose figures scatter."""
    start_steps: Annotated[int, Field(ge=1)] = 5
    """The first steps, whose mean is the start that shares are taken of."""
    min_rank_share: Share = 0.3
    """Of `embed/effective_rank` at the start."""
    min_entropy_share: Share = 0.3
    """Of `rollout/entropy` at the start."""
    min_tokens: Annotated[float, Field(gt=0)] | None = 2.0
    """Mean length below which rationales are taken for nothing."""
    max_truncated_share: Share = 0.95
    """Of rationales, at rollout.max_tokens; watched where reward.truncation has a mode, for without one cut rationales
    are meant."""
    max_common_share: Share = 0.5
    """Of instances that have one and the same rationale."""
    max_zero_spread_share: Share = 0.9
    """Of groups whose rewards do not differ."""
    max_mismatch: Annotated[float, Field(gt=0)] | None = 0.1
    """Of `mismatch/k3`, nats a token."""
    stop: bool = False
    """End the run at the first warning, with a checkpoint; `callbacks.checkpoint.monitor` keeps the best one."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class CallbacksConfig:
    """Checkpoints, export, watchdog, report and the progress display."""

    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    progress: Literal["bar", "lines", "json", "none"] = "bar"
    """bar: live; lines: one line a step, for logs; json: one JSON object a line on stdout, for machines."""
    report: bool = True
    """Write report.html and report.json at the end."""
    watchdog: WatchdogConfig | None = Field(default_factory=WatchdogConfig)
    """Warns of a collapse; null: nobody watches."""
    export: list[Export] = Field(default_factory=lambda: list[Export](["merged"]))
    """Written at the end in Hugging Face format; `adapter` needs LoRA."""
