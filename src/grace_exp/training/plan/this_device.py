"""The device of this process: its name, its memory, and how much of it was used."""

import torch


def total_memory(accelerator: str) -> int | None:
    """Return the bytes of one device; None if this machine has none."""
    if accelerator == "gpu":
        if not torch.cuda.is_available():
            return None
        return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)
    import os

    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def device_name(accelerator: str) -> str | None:
    """Return the device's name as CUDA reports it; None for a CPU, or without a GPU."""
    return torch.cuda.get_device_name() if accelerator == "gpu" and torch.cuda.is_available() else None
