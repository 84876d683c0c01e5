"""Store and restore the random state of dropout."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class RandomState:
    """The state of the generators that dropout draws from."""

    def __init__(self, device: torch.device) -> None:
        """Store the present state.

        Args:
            device: Device of the model; the state of the CPU's generator is stored too.
        """
        self._device = device
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Restore the stored state inside the block, and the state before it afterwards."""
        with torch.random.fork_rng(devices=[self._device] if self._cuda is not None else []):
            torch.set_rng_state(self._cpu)
            if self._cuda is not None:
                torch.cuda.set_rng_state(self._cuda, self._device)
            yield
