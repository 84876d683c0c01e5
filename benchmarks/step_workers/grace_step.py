"""GRACE's side of `benchmarks/step.py`: does one step of the demo's recipe per request of the driver.

Usage: grace_step.py SETTINGS.json
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grace_exp.openmp  # noqa: F401 - as `python -m grace_exp` does

# isort: split

import torch
from lightning.pytorch import Callback
from turns import Turns

from grace_exp.config.compose import compose_config
from grace_exp.config.root import GraceConfig
from grace_exp.data.batch import Role
from grace_exp.data.datamodule import GraceDataModule
from grace_exp.data.prompts import RoleText
from grace_exp.jobs.assemble import assemble
from grace_exp.jobs.recipe import configured_recipe
from grace_exp.policy.load_backbone import Backbone
from grace_exp.rollout.transformers_engine import TransformersEngine
from grace_exp.training.module import StepModule
from grace_exp.training.trainer import build_trainer

_STEPS = 100
"""More than the driver asks for."""


def settings_of(job: dict[str, Any]) -> list[str]:
    """Return the demo's settings with the benchmark's batch, group and length."""
    return [
        "+experiment=demo_paper",
        "evaluation=none",
        f"job.steps={_STEPS}",
        f"job.batch_size={job['batch']}",
        f"objective.mini_batch_size={job['batch']}",
        f"rollout.group_size={job['group']}",
        f"rollout.max_tokens={job['tokens']}",
        f"hardware.threads={job['threads']}",
        *job["overrides"],
    ]


class OneAtATime(Callback):
    """Starts a step when the driver asks for it."""

    def __init__(self, turns: Turns, module: StepModule) -> None:
        """Control the steps of `module`."""
        self._turns, self._module = turns, module

    def on_train_batch_start(self, *_: Any) -> None:
        """Wait for the driver's request."""
        if not self._turns.begin():
            sys.exit()

    def on_train_batch_end(self, *_: Any) -> None:
        """Answer with the step's figures."""
        row = self._module.history[-1]
        self._turns.end(reward=row["reward/total/mean"], tokens=row["rollout/tokens_mean"])


def main() -> None:
    """Set up, report the settings, and take turns."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        config = compose_config(settings_of(job), Path(folder))
        _take_turns(config, Turns())


def _take_turns(config: GraceConfig, turns: Turns) -> None:
    recipe = configured_recipe(config, None)
    data = GraceDataModule(
        recipe,
        batch_size=config.job.batch_size,
        mini_batch_size=config.objective.mini_batch_size,
        steps=config.job.steps,
    )
    assembled = assemble(config, lambda _step, _rows: None)
    module, backbone = assembled.module, assembled.backbone
    # Without end tokens every rationale has the full length.
    module.engine = TransformersEngine(
        backbone.model,
        end_token_ids=(),
        pad_token_id=backbone.pad_token_id,
        batch_tokens=config.rollout.batch_tokens,
        training=True,
    )
    _count_cpu_seconds(module, turns)
    turns.say(**_work(config, backbone, module, data))
    trainer = build_trainer(config.hardware, steps=_STEPS, loggers=[], callbacks=[OneAtATime(turns, module)])
    trainer.fit(module, datamodule=data)


def _work(config: GraceConfig, backbone: Backbone, module: StepModule, data: GraceDataModule) -> dict[str, Any]:
    """Return the prompts of every step, so that TRL can use the same."""
    steps = []
    for step in range(20):
        rows = []
        for instance in data.batch(step).instances:
            texts = [
                RoleText(Role.POSITIVE, instance.positive, instance.source),
                RoleText(Role.QUERY, instance.query, instance.source),
                *(RoleText(Role.NEGATIVE, text, instance.source) for text in instance.negatives),
            ]
            prompts = module.prompts.many(texts)
            rows.append([{"ids": list(one.token_ids), "pool_start": one.pool_start} for one in prompts])
        steps.append(rows)
    lora, terms = config.backbone.lora, config.reward.terms
    assert lora is not None
    return {
        "model": str(backbone.model.config._name_or_path),
        "steps": steps,
        "lora": {"rank": lora.rank, "alpha": lora.alpha, "dropout": lora.dropout, "targets": lora.target_modules},
        "temperatures": {"group": config.rollout.temperature, "anchor": config.rollout.anchor_temperature},
        "reward_temperature": terms.infonce.temperature if terms.infonce is not None else None,
        "learning_rate": config.optim.learning_rate,
        "settings": {
            "keep_forward": module.config.hardware.keeps_forward,
            "train_tokens": module.config.hardware.train_budget,
            "linear": module.policy.library,
        },
    }


def _count_cpu_seconds(module: StepModule, turns: Turns) -> None:
    """Measure phases in CPU seconds, as in the rest of the benchmark."""
    wall = module.timer

    class Timer(type(wall)):  # type: ignore[misc]
        @contextmanager
        def __call__(self, phase: str) -> Iterator[None]:
            start = time.process_time()
            with wall(phase):
                yield
            turns.phases[phase] = turns.phases.get(phase, 0.0) + time.process_time() - start

        def step_metrics(self) -> dict[str, float]:
            return wall.step_metrics()

    module.timer = Timer()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
