"""The device of this process: its name and memory, and what of it was used."""

import torch


def total_memory(accelerator: str) -> int | None:
    """Bytes of one device; None: it is not here."""
    if accelerator == "gpu":
        if not torch.cuda.is_available():
            return None
        return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)
    import os

    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def device_name(accelerator: str) -> str | None:
    """As CUDA reports it; None: a CPU, or no GPU here."""
    return torch.cuda.get_device_name() if accelerator == "gpu" and torch.cuda.is_available() else None
