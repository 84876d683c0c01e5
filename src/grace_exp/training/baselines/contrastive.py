"""Contrastive training (the paper's baseline): InfoNCE on embeddings of texts without rationales."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from grace_exp.config.root import GraceConfig
from grace_exp.data.batch import Instance, Role, TextBatch
from grace_exp.data.prompts import PromptBuilder, RoleText
from grace_exp.policy.freezing import freeze_beyond_pooling
from grace_exp.policy.packing import Region, TextSequence
from grace_exp.policy.policy import Policy
from grace_exp.rollout.protocol import RolloutEngine
from grace_exp.training.baselines.gradient_cache import GradientCache
from grace_exp.training.baselines.pairs import PairEmbeddings
from grace_exp.training.module import Backward, StepModule


class ContrastiveModule(StepModule):
    """Trains prompt-only embeddings: each query near its positive, and far from the other texts of the update.

    The other texts are those of all processes, so the number of processes has no effect. The batch size is limited only
    by the memory of its embeddings (`GradientCache`).
    """

    def __init__(self, config: GraceConfig, *, policy: Policy, engine: RolloutEngine, prompts: PromptBuilder) -> None:
        """Make a `StepModule`, and freeze weights that no embedding depends on."""
        super().__init__(config, policy=policy, engine=engine, prompts=prompts)
        freeze_beyond_pooling(policy)

    @property
    def region(self) -> Region:
        """The region over which the trained embedding is pooled."""
        return "text"

    def sequences(self, texts: Sequence[RoleText]) -> list[TextSequence]:
        """Return the texts as the model reads them: prompts without rationales."""
        return [TextSequence(prompt) for prompt in self.prompts.many(texts)]

    def views(self, queries: list[TextSequence], others: list[TextSequence]) -> list[list[TextSequence]]:
        """Return the texts for `GradientCache`, queries first: all in one view."""
        return [[*queries, *others]]

    def step(self, batch: TextBatch) -> dict[str, float]:
        """Make InfoNCE updates on the step's instances."""
        rows = [self._update(batch.step, first, part) for first, part in self.mini_batches(batch.instances)]
        names = dict.fromkeys(name for row in rows for name in row)
        found = {name: [row[name] for row in rows if name in row] for name in names}
        means = {name: sum(values) / len(values) for name, values in found.items()}
        return means | {
            "rollout/prompts_cut": sum(found["rollout/prompts_cut"]),
            "train/skipped_updates": float(self.skipped_updates),
        }

    def _update(self, step: int, first: int, instances: Sequence[Instance]) -> dict[str, float]:
        temperature, hardware = self.config.method.temperature, self.config.hardware
        assert temperature is not None  # checked by MethodConfig
        queries = [RoleText(Role.QUERY, instance.query, instance.source) for instance in instances]
        others = [RoleText(Role.POSITIVE, instance.positive, instance.source) for instance in instances]
        others += [
            RoleText(Role.NEGATIVE, text, instance.source) for instance in instances for text in instance.negatives
        ]
        sequences = self.sequences([*queries, *others])
        self.engine.sleep()  # frees its memory for forwards and updates
        views = self.views(sequences[: len(queries)], sequences[len(queries) :])
        self.policy.model.train()
        with self.timer("score"):
            cache = GradientCache(
                self.policy, views, self.region, hardware.train_budget, keep_all=hardware.keeps_forward
            )
        pairs = PairEmbeddings.gathered(cache.embeddings_NH, instances, self.gather)
        metrics = pairs.metrics() if pairs.finite() else {}  # a bad loss or gradient is handled by `update`
        loss, gradients = pairs.contrast().gradients(temperature)

        def accumulate(backward: Backward) -> Tensor:
            # Gradients of the weights are averaged over processes; each process has its part of the sum.
            cache.backward(pairs.own_gradients(gradients, self.own) * self.trainer.world_size, backward)
            return loss

        def evidence() -> dict[str, Any]:
            return {"instances": [asdict(instance) for instance in instances]}

        with self.timer("update"):
            done = {"loss": loss.item()} | self.update(step, first, evidence, accumulate)
        cut = len({sequence.prompt for sequence in sequences if sequence.prompt.text_tokens_cut})
        metrics["rollout/prompts_cut"] = self.sum(loss.new_tensor(cut)).item()
        return metrics | {f"train/{name}": value for name, value in done.items()}
