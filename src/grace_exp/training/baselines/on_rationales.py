"""Contrastive training on rationales of the untrained model: GRACE without its reinforcement learning."""

from collections.abc import Sequence

import torch

from grace_exp.config.root import GraceConfig
from grace_exp.data.batch import TextBatch
from grace_exp.data.prompts import PromptBuilder, RoleText
from grace_exp.encoder.modes import writes
from grace_exp.policy.packing import Region, TextSequence
from grace_exp.policy.policy import Policy
from grace_exp.rollout.protocol import Completion, Request, derive_seed
from grace_exp.training.baselines.contrastive import ContrastiveModule
from grace_exp.training.baselines.initial_model import InitialModel, InitialModelEngine
from grace_exp.training.step.rollouts import NO_RATIONALE


class ContrastiveOnRationalesModule(ContrastiveModule):
    """Trains the embeddings of texts with rationales, which the untrained model writes.

    Evaluation works in the same way: the trained model reads rationales of the untrained one.
    """

    def __init__(
        self,
        config: GraceConfig,
        *,
        policy: Policy,
        start: InitialModel,
        engine: InitialModelEngine,
        prompts: PromptBuilder,
    ) -> None:
        """Make a `ContrastiveModule`; `engine` writes with `start`, which moves to a device with this module."""
        super().__init__(config, policy=policy, engine=engine, prompts=prompts)
        self.start = start
        self._written: list[Completion] = []

    @property
    def region(self) -> Region:
        """The region over which the trained embedding is pooled, as in GRACE."""
        return self.config.backbone.pooling.region

    def sequences(self, texts: Sequence[RoleText]) -> list[TextSequence]:
        """Return texts with their rationales; the seed depends on run and text, so a text has the same in every step.

        With `rollout.anchor_rationales=false` the texts of one side have no rationale.
        """
        rollout = self.config.rollout
        prompts = self.prompts.many(texts)
        written = [writes(rollout.mode, role) for role, _, _ in texts]
        with self.timer("rollout"):
            answers = self.engine.generate(
                [
                    Request(
                        prompt.token_ids,
                        1,
                        rollout.max_tokens,
                        rollout.anchor_temperature,
                        derive_seed(self.config.seed, "start", role, text),
                    )
                    for prompt, (role, text, _), writing in zip(prompts, texts, written, strict=True)
                    if writing
                ]
            )
        self._written += [answer[0] for answer in answers]
        following = iter(answers)
        completions = [next(following)[0] if writing else NO_RATIONALE for writing in written]
        return [
            TextSequence(prompt, completion.token_ids, rollout.anchor_temperature)
            for prompt, completion in zip(prompts, completions, strict=True)
        ]

    def step(self, batch: TextBatch) -> dict[str, float]:
        """Make the updates of `ContrastiveModule`, and add metrics of the rationales."""
        self._written = []
        metrics = super().step(batch)
        lengths = [len(completion.token_ids) for completion in self._written]
        cut = sum(completion.truncated for completion in self._written)
        sums = self.sum(torch.tensor([sum(lengths), cut, len(lengths)], dtype=torch.float64, device=self.device))
        longest = self.gather(torch.tensor([max(lengths)], device=self.device))
        return metrics | {
            "rollout/tokens_mean": (sums[0] / sums[2]).item(),
            "rollout/tokens_max": float(longest.max()),
            "rollout/truncated_share": (sums[1] / sums[2]).item(),
        }
