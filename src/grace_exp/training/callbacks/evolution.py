"""The evolution table: rationales, rewards and nearest neighbours of the same texts over the run."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from grace_exp.config.root import GraceConfig
from grace_exp.data.batch import Instance, TextBatch
from grace_exp.objective.registry import needs_greedy_baseline, needs_reference_kl
from grace_exp.reward import EmbeddingError
from grace_exp.training.grace import GraceModule
from grace_exp.training.module import step_module
from grace_exp.training.step.rewards import StepRewards
from grace_exp.training.step.rollouts import Rollouts, sample_rows, write_rollouts
from grace_exp.training.step.step_inputs import StepInputs
from grace_exp.training.step.step_scores import StepScores

NEIGHBOURS = 3

EvolutionSink = Callable[[int, list[dict[str, object]]], None]


class Evolution(Callback):
    """Writes rationales for the first instances of the first batch: before training, every n steps, and after the last.

    They are sampled with the same seeds every time, and are not trained on. Every process takes part with its own
    instances; only those of the first process are stored.
    """

    def __init__(self, config: GraceConfig, log: EvolutionSink) -> None:
        """Prepare the callback.

        Args:
            config: The settings of the run.
            log: Called with (steps done, rows) of the evolution table.
        """
        self._config = config
        self._log = log

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record before the first step."""
        if step_module(pl_module).completed_steps == 0:
            self._record(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Record every n steps and after the last."""
        done, every = step_module(pl_module).completed_steps, self._config.logger.evolution_every_n_steps
        if every and (done % every == 0 or done == self._config.job.steps):
            self._record(trainer, pl_module)

    def _record(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._config.logger.evolution_every_n_steps or not isinstance(pl_module, GraceModule):
            return
        batch = trainer.datamodule.batch(0)  # type: ignore[attr-defined]
        instances = batch.instances[: self._config.logger.evolution_texts]
        with pl_module.timer("evolution"), trainer.precision_plugin.forward_context(), torch.no_grad():
            try:
                rows = evolution_rows(pl_module, instances)
            except EmbeddingError:  # the next step reports it, or the run is over
                return
        if trainer.is_global_zero:
            self._log(pl_module.completed_steps, rows)


def evolution_rows(module: GraceModule, instances: list[Instance]) -> list[dict[str, object]]:
    """Return rows of the evolution table under the module's present weights.

    Args:
        module: The training module, with an engine that has its weights.
        instances: This process's instances; the number is the same on every process.
    """
    config = module.config
    region = config.backbone.pooling.region
    inputs = StepInputs(config, module, partial(module.decode, skip_special_tokens=True), 0)
    scores = StepScores(
        module.policy,
        config.hardware,
        inputs.regions,
        encoder=module.encoder,
        reference=module.reference if needs_reference_kl(config.objective) else None,
        entropy=False,
    )
    rewards = StepRewards(config, scores, module, inputs)
    greedy = needs_greedy_baseline(config.objective)
    batch = TextBatch(0, instances)
    rollouts = write_rollouts(batch, module.engine, module.prompts, config.rollout, config.seed, greedy=greedy)
    rewards.add(rollouts, rollouts)
    figures = {
        trained.role: {name: module.own(values) for name, values in trained.figures().items()}
        for trained in rewards.trained_roles(rollouts)
    }
    rows = sample_rows(rollouts, figures, module.decode, len(rollouts.group))
    return [row | more for row, more in zip(rows, _numbers_and_neighbours(rollouts, scores, region), strict=True)]


def _numbers_and_neighbours(rollouts: Rollouts, scores: StepScores, region: Any) -> list[dict[str, object]]:
    """Return the number of each rationale and the texts nearest to it, in the order of `sample_rows`.

    The position of a text is the embedding with its first rationale.
    """
    everything = [*rollouts.group, *rollouts.others()]
    owners = [(rollout.instance.index, rollout.role.value, rollout.text) for rollout in everything]
    numbers: list[int] = []
    for place, owner in enumerate(owners):
        numbers.append(owners[:place].count(owner))
    unit = torch.nn.functional.normalize(scores.embeddings(everything, region).float(), dim=1)
    first = [place for place, number in enumerate(numbers) if number == 0]
    cosines = unit @ unit[first].T
    found: list[dict[str, object]] = []
    for place, owner in enumerate(owners):
        others = [column for column, other in enumerate(first) if owners[other] != owner]
        nearest = sorted(others, key=cosines[place].tolist().__getitem__, reverse=True)[:NEIGHBOURS]
        neighbours = [
            {"role": owners[first[column]][1], "text": owners[first[column]][2], "instance": owners[first[column]][0]}
            | {"cosine": round(float(cosines[place, column]), 4)}
            for column in nearest
        ]
        found.append({"sample": numbers[place], "neighbours": json.dumps(neighbours, ensure_ascii=False)})
    return found
