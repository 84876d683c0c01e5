"""Whole runs of the tiny model in this process, and the files that they write."""

import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from grace_exp.tracking.metrics_csv import TIMED_PREFIXES

SMALL = [
    "+experiment=demo_tiny",
    "hardware.threads=1",  # equal results bit for bit ask for equal threads
    "callbacks.progress=none",
    "callbacks.export=[]",
    "rollout.group_size=3",
    "rollout.max_tokens=6",
    "logger.evolution_every_n_steps=0",
    "callbacks.report=false",
    "callbacks.watchdog=null",
]


@pytest.fixture(scope="session")
def small() -> list[str]:
    """The settings of `train`, for runs in processes of their own."""
    return SMALL


@dataclass(frozen=True)
class RunFolder:
    """The files of a run."""

    path: Path

    @property
    def metrics(self) -> pd.DataFrame:
        """metrics.csv as text, without what depends on the machine's speed."""
        table = pd.read_csv(self.path / "metrics.csv", dtype=str, keep_default_na=False)
        return table[[name for name in table if not name.startswith(TIMED_PREFIXES)]]

    def figure(self, name: str) -> list[float]:
        """One column of metrics.csv."""
        return [float(value) for value in self.metrics[name]]

    @property
    def samples(self) -> pd.DataFrame:
        """All rows of the samples table, by step."""
        files = sorted((self.path / "samples").glob("*.parquet"))
        return pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)

    @property
    def checkpoints(self) -> list[str]:
        """Names of the checkpoints."""
        return sorted(path.name for path in (self.path / "checkpoints").iterdir())

    def checkpoint(self) -> dict[str, Any]:
        """The newest checkpoint."""
        path = self.path / "checkpoints" / self.checkpoints[-1]
        checkpoint: dict[str, Any] = torch.load(path, weights_only=True)
        return checkpoint

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The trained weights in the newest checkpoint."""
        found: dict[str, torch.Tensor] = self.checkpoint()["state_dict"]
        return found

    def assert_continues_as(self, other: "RunFolder") -> None:
        """Weights, optimizer, schedule, metrics and samples are those of `other`, bit for bit."""
        mine, its = self.checkpoint(), other.checkpoint()
        torch.testing.assert_close(mine["state_dict"], its["state_dict"], rtol=0, atol=0)
        torch.testing.assert_close(mine["optimizer_states"], its["optimizer_states"], rtol=0, atol=0)
        assert mine["lr_schedulers"] == its["lr_schedulers"]
        data = [dict(state["GraceDataModule"]) for state in (mine, its)]
        torch.testing.assert_close(*(one.pop("difficulties", {}) for one in data), rtol=0, atol=0)
        assert data[0] == data[1]
        assert mine["global_step"] == its["global_step"]
        pd.testing.assert_frame_equal(self.metrics, other.metrics)
        pd.testing.assert_frame_equal(self.samples, other.samples, check_exact=True)


Train = Callable[..., RunFolder]


@pytest.fixture(scope="session")
def train(tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Trains: overrides; `folder` for the run; `signal_in` sends `number` in that step (counted from 1), `callbacks`.

    The keyword `base` replaces the small settings.
    """
    from lightning.pytorch import Callback

    from grace_exp.config.compose import compose_config
    from grace_exp.jobs import train as job

    cache = tmp_path_factory.mktemp("cache")

    class SendSignal(Callback):
        def __init__(self, step: int, number: signal.Signals) -> None:
            self.step = step
            self.number = number

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch.step + 1 == self.step:
                signal.raise_signal(self.number)

    def train(
        *overrides: str,
        folder: Path | None = None,
        signal_in: int | None = None,
        number: signal.Signals = signal.SIGTERM,
        callbacks: tuple[Callback, ...] = (),
        base: list[str] = SMALL,
    ) -> RunFolder:
        folder = folder or tmp_path_factory.mktemp("run")
        if signal_in is not None:
            callbacks = (*callbacks, SendSignal(signal_in, number))
        build = job.build_trainer
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                job, "build_trainer", lambda *a, **k: build(*a, **k | {"callbacks": [*k["callbacks"], *callbacks]})
            )
            job.train(compose_config([*base, f"cache_dir={cache}", *overrides], folder))
        return RunFolder(folder)

    return train
