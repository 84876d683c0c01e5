"""The pathwise part of one update, as losses that are added to its own."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from grace_exp.policy.packing import Region
from grace_exp.policy.policy import Policy
from grace_exp.policy.random_state import RandomState
from grace_exp.training.step.rollouts import Rollout, sequences_of
from grace_exp.training.step.step_scores import EmbeddingPass


@dataclass(frozen=True, eq=False)
class PathwisePart:
    """What the pathwise gradient adds to one update on this process.

    Attributes:
        value: Mean final reward of the step's kept rationales under the present weights, `[]`.
        gradients: Of the loss by the embeddings, by region and rollout, [hidden]; what is missing has none.
        others: Rollouts with a gradient that are not trained: anchors, negatives, texts with swapped rationales.
        regions: What is pooled.
        kept: Forwards of `others` that were made with gradients already; empty: they are made for the update.
        states: Of dropout, for each micro-batch of the trained rollouts; empty: as it stands.
        other_states: The same for the micro-batches of `others`.
    """

    value: Tensor
    gradients: Mapping[Region, Mapping[Rollout, Tensor]]
    others: Sequence[Rollout]
    regions: tuple[Region, ...]
    kept: Sequence[EmbeddingPass] = ()
    states: Sequence[RandomState] = ()
    other_states: Sequence[RandomState] = ()

    def loss(self, forward: EmbeddingPass) -> Tensor:
        """A loss whose gradient by the embeddings of a forward, which carry gradients, is the pathwise one."""
        terms = []
        for region, embeddings in forward.embeddings.items():
            gradients, zero = self.gradients[region], torch.zeros_like(embeddings[0])
            terms.append(
                (embeddings * torch.stack([gradients.get(rollout, zero) for rollout in forward.rollouts])).sum()
            )
        return torch.stack(terms).sum()

    def other_passes(self, policy: Policy, token_budget: int) -> tuple[Iterator[EmbeddingPass], int]:
        """The forwards of `others`, and their number."""
        if self.kept:
            return iter(self.kept), len(self.kept)
        return embedding_passes(policy, self.others, token_budget, self.regions, self.other_states)

    def trained_passes(
        self, policy: Policy, trained: Sequence[Rollout], token_budget: int
    ) -> tuple[Iterator[EmbeddingPass], int]:
        """The forwards of trained rollouts, where nothing but their embeddings is asked for, and their number."""
        return embedding_passes(policy, trained, token_budget, self.regions, self.states)


def embedding_passes(
    policy: Policy,
    rollouts: Sequence[Rollout],
    token_budget: int,
    regions: Sequence[Region],
    states: Sequence[RandomState] = (),
) -> tuple[Iterator[EmbeddingPass], int]:
    """Forwards without the output head, in the model's mode, and their number.

    Args:
        policy: The model.
        rollouts: Any number.
        token_budget: Of a micro-batch.
        regions: What is pooled.
        states: Of dropout, for each micro-batch; none: as it stands.
    """
    sequences = sequences_of(rollouts)
    plan = policy.plan(sequences, token_budget)

    def passes() -> Iterator[EmbeddingPass]:
        for number, indices in enumerate(plan):
            with states[number].restored() if states else nullcontext():
                found = policy.embedding_pass(sequences, indices, regions)
            yield EmbeddingPass([rollouts[index] for index in indices], found)

    return passes(), len(plan)
