"""The Lightning Trainer for a run."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger

from grace_exp.config.hardware import HardwareConfig

if TYPE_CHECKING:
    import torch


def build_trainer(
    hardware: HardwareConfig, *, steps: int, loggers: Sequence[Logger], callbacks: Sequence[Callback]
) -> Trainer:
    """One epoch of `steps` batches; optimisation, logging, checkpoints and progress are ours."""
    return Trainer(
        accelerator=hardware.accelerator,
        devices=hardware.devices,
        num_nodes=hardware.nodes,
        strategy=hardware.strategy,
        precision=hardware.precision,
        max_epochs=1,
        limit_train_batches=steps,
        logger=list(loggers),
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        use_distributed_sampler=False,  # the DataModule gives each process its share
        num_sanity_val_steps=0,
    )


def weight_dtype(hardware: HardwareConfig) -> "torch.dtype":
    """Of the weights: float32 unless the run is in pure bfloat16."""
    import torch

    return torch.bfloat16 if hardware.precision == "bf16-true" else torch.float32
