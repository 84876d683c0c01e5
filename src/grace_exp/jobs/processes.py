"""Several processes for a job that has no trainer to start them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from grace_exp.config.hardware import HardwareConfig
from grace_exp.training.callbacks.children import end_children, wait_for_children


@contextmanager
def processes(hardware: HardwareConfig) -> Iterator[torch.device]:
    """Start the job's other processes, which come to this very place, and give each its device.

    With one process nothing is started. What runs inside finds the others through `torch.distributed`.

    Args:
        hardware: Devices, nodes and strategy; on several nodes the usual launchers' variables are read.

    Yields:
        This process's device.
    """
    if hardware.devices * hardware.nodes == 1:
        yield torch.device("cuda" if hardware.accelerator == "gpu" else "cpu")
        return
    from lightning.fabric import Fabric

    fabric = Fabric(
        accelerator="cuda" if hardware.accelerator == "gpu" else "cpu",
        devices=hardware.devices,
        num_nodes=hardware.nodes,
        strategy="ddp",
    )
    fabric.launch()
    launcher = fabric.strategy.launcher
    try:
        yield fabric.device
    except BaseException:
        end_children(launcher)  # first: taking the group down may wait for them
        raise
    finally:
        dist.destroy_process_group()
    wait_for_children(launcher)
