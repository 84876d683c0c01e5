"""Dropout that can be drawn again."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class RandomState:
    """The generators that dropout draws from, as they stand."""

    def __init__(self, device: torch.device) -> None:
        """Take them down.

        Args:
            device: Of the model; the CPU's generator is taken down too.
        """
        self._device = device
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Let them stand so again for the block, and afterwards as they stood before it."""
        with torch.random.fork_rng(devices=[self._device] if self._cuda is not None else []):
            torch.set_rng_state(self._cpu)
            if self._cuda is not None:
                torch.cuda.set_rng_state(self._cuda, self._device)
            yield
