"""The Lightning Trainer for a run."""

import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy, Strategy

from grace_exp.config.hardware import HardwareConfig
from grace_exp.training.callbacks.children import EndChildren
from grace_exp.training.sharded_strategy import ShardedStrategy

_TIMEOUT = timedelta(hours=2)


def build_trainer(
    hardware: HardwareConfig, *, steps: int, loggers: Sequence[Logger], callbacks: Sequence[Callback]
) -> Trainer:
    """One epoch of `steps` batches; optimisation, logging, checkpoints and progress are ours."""
    return Trainer(
        accelerator=hardware.accelerator,
        devices=hardware.devices,
        num_nodes=hardware.nodes,
        strategy=_strategy(hardware),
        precision=hardware.precision,
        max_epochs=1,
        limit_train_batches=steps,
        logger=list(loggers),
        callbacks=[EndChildren(), *callbacks],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        use_distributed_sampler=False,  # the DataModule gives each process its share
        num_sanity_val_steps=0,
        plugins=[MappedCheckpoints(), *_without_srun(hardware)],
    )


def _without_srun(hardware: HardwareConfig) -> list[ClusterEnvironment]:
    """Lightning's usual way to start processes where a SLURM allocation is there, but no `srun` has started this one.

    `salloc` and batch scripts set SLURM_NTASKS, from which Lightning takes this process for one of several. What `srun`
    starts has the number of its step, too.
    """
    alone = "SLURM_NTASKS" in os.environ and "SLURM_STEP_ID" not in os.environ and hardware.nodes == 1
    return [LightningEnvironment()] if alone else []


def _strategy(hardware: HardwareConfig) -> Strategy | str:
    if hardware.strategy == "auto":
        return "auto"
    if hardware.strategy == "fsdp2":
        return ShardedStrategy(hardware.devices * hardware.nodes, timeout=_TIMEOUT)
    # Gradients live in the buckets that are exchanged (`StepModule.on_train_start`). The time limit is that of one
    # exchange; what a slow process writes between two of them must fit into it.
    return DDPStrategy(gradient_as_bucket_view=True, timeout=_TIMEOUT)


class MappedCheckpoints(TorchCheckpointIO):
    """Checkpoints that are mapped into memory: what several processes of a machine read of one, it reads once."""

    def load_checkpoint(self, path: str | Path, *_: Any, **__: Any) -> dict[str, Any]:
        """As `load_checkpoint` of `training.resume`, which has looked at the file: on the CPU, data only."""
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        return checkpoint
