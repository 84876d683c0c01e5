"""Totals of a run: seconds per phase, peak memory, and the file that holds them."""

import json
import math
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from grace_exp.tracking.atomic import write_text_atomic


def write_json_atomic(path: Path, obj: Any) -> None:
    """Write `obj` as indented JSON; a reader sees the old file or the new one, never a part of one.

    Args:
        path: The file, e.g. `run_dir / "summary.json"`.
        obj: Dicts with string keys, lists, strings, numbers, booleans and None. nan and inf become null.

    Raises:
        TypeError: `obj` holds another type.
    """
    write_text_atomic(path, json.dumps(finite(obj), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def finite(obj: Any) -> Any:
    """Return plain data with None in place of nan and inf, which JSON does not have."""
    if isinstance(obj, float):
        return obj if math.isfinite(obj) else None
    if isinstance(obj, Mapping):
        return {key: finite(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [finite(value) for value in obj]
    return obj


def peak_memory_gib() -> dict[str, float]:
    """Return the peak memory of this process so far, in GiB.

    Returns:
        `host`: the largest resident set; `device`, only if torch has used a GPU: the largest sum of tensors that its
        allocator held on the current GPU.
    """
    import torch

    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes on macOS, KiB on Linux
    peak = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30}
    if torch.cuda.is_initialized():
        peak["device"] = torch.cuda.max_memory_allocated() / 2**30
    return peak


class PhaseTimer:
    """Wall-clock seconds per named phase, for the present step and for the whole run.

    `with timer("rollout"): ...` may be entered any number of times per step. Phases may be nested; the outer one
    includes the inner one. GPU work is asynchronous, so it counts in the phase that waits for its result.
    """

    def __init__(self) -> None:
        """Start without phases."""
        self._step: dict[str, float] = {}
        self._totals: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Add the time spent in the block to `phase`, also if the block raises."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(phase, time.perf_counter() - start)

    def add(self, phase: str, seconds: float) -> None:
        """Add seconds that passed elsewhere, e.g. on another thread."""
        self._step[phase] = self._step.get(phase, 0.0) + seconds
        self._totals[phase] = self._totals.get(phase, 0.0) + seconds

    def step_metrics(self) -> dict[str, float]:
        """Return `{"time/<phase>": seconds}` since the last call, and start the next step."""
        metrics = {f"time/{phase}": seconds for phase, seconds in self._step.items()}
        self._step = {}
        return metrics

    def totals(self) -> dict[str, float]:
        """Return `{phase: seconds}` of the whole run, also before a resume."""
        return dict(self._totals)

    def state_dict(self) -> dict[str, float]:
        """Return the totals for a checkpoint."""
        return dict(self._totals)

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continue from the totals of a checkpoint."""
        self._totals = dict(state)
        self._step = {}
