"""Runs several configurations one after another in the processes of one group: `torchrun several_processes.py FILE`.

Starting processes costs more than a run of the tiny model. FILE is JSON: for each run its folder and its overrides.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

import grace_exp.openmp  # noqa: F401 - before torch starts threads
from grace_exp.config.compose import compose_config
from grace_exp.jobs import train as job
from grace_exp.training.module import step_module


class GradientStorages(Callback):
    """Writes how many sets of addresses the gradients had from the first step's first backward on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: set[tuple[int, ...]] | None = None

    def on_train_batch_start(self, *_: Any) -> None:
        self.seen = self.seen or set()

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        if self.seen is not None:
            gradients = [parameter.grad for parameter in step_module(pl_module).policy.trainable_parameters()]
            self.seen.add(tuple(0 if gradient is None else gradient.data_ptr() for gradient in gradients))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.on_before_backward(trainer, pl_module, None)
        if trainer.is_global_zero and self.seen is not None:
            (self.folder / "gradients.json").write_text(json.dumps(len(self.seen)))


def main() -> None:
    torch.set_num_threads(1)
    build = job.build_trainer
    for run in json.loads(Path(sys.argv[1]).read_text()):
        folder = Path(run["folder"])
        watched = [GradientStorages(folder)]
        job.build_trainer = lambda *a, watched=watched, **k: build(*a, **k | {"callbacks": [*k["callbacks"], *watched]})
        job.train(compose_config(run["overrides"], folder))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
