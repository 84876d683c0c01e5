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
    """Return a trainer for one epoch of `steps` batches; optimisation, logging, checkpoints and progress are ours."""
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
    """Return Lightning's usual launcher if there is a SLURM allocation but `srun` did not start this process.

    `salloc` and batch scripts set SLURM_NTASKS, from which Lightning concludes that this process is one of several. A
    process that `srun` has started also has the number of its step.
    """
    alone = "SLURM_NTASKS" in os.environ and "SLURM_STEP_ID" not in os.environ and hardware.nodes == 1
    return [LightningEnvironment()] if alone else []


def _strategy(hardware: HardwareConfig) -> Strategy | str:
    if hardware.strategy == "auto":
        return "auto"
    if hardware.strategy == "fsdp2":
        return ShardedStrategy(hardware.devices * hardware.nodes, timeout=_TIMEOUT)
    # Gradients are stored in the exchange buckets (`StepModule.on_train_start`). The time limit is that of one
    # exchange; whatever a slow process writes between two exchanges must fit into it.
    return DDPStrategy(gradient_as_bucket_view=True, timeout=_TIMEOUT)


class MappedCheckpoints(TorchCheckpointIO):
    """Checkpoints that are mapped into memory, so that a machine with several processes reads them once."""

    def load_checkpoint(self, path: str | Path, *_: Any, **__: Any) -> dict[str, Any]:
        """Load a file as `training.resume.load_checkpoint` does, which has checked it: on the CPU, data only."""
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        return checkpoint
