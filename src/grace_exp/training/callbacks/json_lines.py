"""Write one JSON object a line about the run, for programs that start and watch runs."""

import json
from typing import Any, TextIO

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, LightningModule, Trainer

from grace_exp.config.root import GraceConfig
from grace_exp.tracking.summary import finite
from grace_exp.training.module import step_module


class JsonLines(Callback):
    """Writes `start`, one `step` with metrics per step, `warning`, and `end`; each object has its name as `event`.

    nan and inf become null. `step` is the number of steps done.
    """

    def __init__(self, config: GraceConfig, stream: TextIO) -> None:
        """Write to `stream`."""
        self._config = config
        self._stream = stream

    @rank_zero_only
    def write(self, event: str, **fields: Any) -> None:
        """Write one object and flush."""
        self._stream.write(json.dumps(finite({"event": event, **fields}), ensure_ascii=False, allow_nan=False) + "\n")
        self._stream.flush()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write which run starts."""
        done = step_module(pl_module).completed_steps
        about = {"name": self._config.name, "seed": self._config.seed, "run_dir": self._config.run_dir}
        self.write("start", **about, step=done, steps=self._config.job.steps)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Write the step's metrics."""
        module = step_module(pl_module)
        metrics = {name: value for name, value in module.history[-1].items() if name != "step"}
        self.write("step", step=module.completed_steps, steps=self._config.job.steps, metrics=metrics)
