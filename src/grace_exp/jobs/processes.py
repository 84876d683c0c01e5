"""Start several processes for a job without a trainer."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from grace_exp.config.hardware import HardwareConfig
from grace_exp.training.callbacks.children import end_children, wait_for_children


@contextmanager
def processes(hardware: HardwareConfig) -> Iterator[torch.device]:
    """Start the job's other processes, which run to this same place, and give each its device.

    With one process none is started. Code inside the block finds the others through `torch.distributed`.

    Args:
        hardware: Devices, nodes and strategy; on several nodes the variables of the usual launchers are read.

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
        end_children(launcher)  # first, because destroying the group may wait for them
        raise
    finally:
        dist.destroy_process_group()
    wait_for_children(launcher)
