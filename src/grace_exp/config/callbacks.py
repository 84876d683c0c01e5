"""Checkpoints, export, watchdog, report and progress display."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from grace_exp.config.base import STRICT

Export = Literal["adapter", "merged"]


@dataclass(config=STRICT, frozen=True, kw_only=True)
class CheckpointConfig:
    """Checkpoints that a run can resume from: trained weights, optimizer, data position."""

    every_n_steps: Annotated[int, Field(ge=0)] = 50
    """Steps between checkpoints; 0: only one checkpoint, when training ends or is interrupted."""
    keep: Annotated[int, Field(ge=1)] = 2
    """Number of newest checkpoints kept."""
    monitor: Annotated[str, Field(pattern=r"^(embed/augmentation_overlap|val/[^/]+/rationale)$")] | None = None
    """Metric whose best step is kept as best.ckpt: `embed/augmentation_overlap`, which needs no label, or
    `val/<set>/rationale`, measured every evaluation.every_n_steps; null: no best.ckpt."""
    mode: Literal["max", "min"] | None = None
    """Whether the highest or the lowest value is best; null: the lowest overlap, the highest held-out figure."""


Share = Annotated[float, Field(gt=0, lt=1)] | None


@dataclass(config=STRICT, frozen=True, kw_only=True)
class WatchdogConfig:
    """Thresholds that warn of a collapse when they are crossed in `patience` steps in a row. null: not watched."""

    patience: Annotated[int, Field(ge=1)] = 5
    """Number of steps in a row. One step is one small batch, and its figures vary."""
    start_steps: Annotated[int, Field(ge=1)] = 5
    """Number of first steps; shares are relative to the mean over these steps."""
    min_rank_share: Share = 0.3
    """Lowest `embed/effective_rank`, as a share of its value at the start."""
    min_entropy_share: Share = 0.3
    """Lowest `rollout/entropy`, as a share of its value at the start."""
    min_tokens: Annotated[float, Field(gt=0)] | None = 2.0
    """Lowest mean length of rationales, in tokens."""
    max_truncated_share: Share = 0.95
    """Highest share of rationales cut at rollout.max_tokens; not watched with reward.truncation.mode=none, where cut
    rationales are intended."""
    max_common_share: Share = 0.5
    """Highest share of instances that have the same rationale."""
    max_zero_spread_share: Share = 0.9
    """Highest share of groups whose rewards do not differ."""
    max_mismatch: Annotated[float, Field(gt=0)] | None = 0.1
    """Highest `mismatch/k3`, in nats per token."""
    stop: bool = False
    """End the run at the first warning, with a checkpoint; `callbacks.checkpoint.monitor` keeps the best one."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class CallbacksConfig:
    """Checkpoints, export, watchdog, report and the progress display."""

    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    progress: Literal["bar", "lines", "json", "none"] = "bar"
    """bar: a live bar; lines: one line a step, for logs; json: one JSON object a line on stdout, for programs."""
    report: bool = True
    """Write report.html and report.json at the end of the run."""
    watchdog: WatchdogConfig | None = Field(default_factory=WatchdogConfig)
    """Warns when training collapses; null: no watchdog."""
    export: list[Export] = Field(default_factory=lambda: list[Export](["merged"]))
    """What is written at the end, in Hugging Face format; `adapter` needs LoRA."""
