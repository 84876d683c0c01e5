"""The pathwise part of one update, as losses that are added to the update's own."""

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
    """The pathwise part of one update on this process.

    Attributes:
        value: Mean final reward of the step's kept rationales under the present weights, `[]`.
        gradients: Gradients of the loss by the embeddings, by region and rollout, [hidden]; others have no gradient.
        others: Rollouts with a gradient that are not trained: anchors, negatives, texts with swapped rationales.
        regions: The pooled regions.
        kept: Forwards of `others` that already exist with gradients; if empty, the update computes them.
        states: State of dropout for each micro-batch of the trained rollouts; empty: the present state.
        other_states: State of dropout for the micro-batches of `others`.
    """

    value: Tensor
    gradients: Mapping[Region, Mapping[Rollout, Tensor]]
    others: Sequence[Rollout]
    regions: tuple[Region, ...]
    kept: Sequence[EmbeddingPass] = ()
    states: Sequence[RandomState] = ()
    other_states: Sequence[RandomState] = ()

    def loss(self, forward: EmbeddingPass) -> Tensor:
        """Return a loss whose gradient by the embeddings of a forward with gradients is the pathwise gradient."""
        terms = []
        for region, embeddings_NH in forward.embeddings.items():
            gradients, zero_H = self.gradients[region], torch.zeros_like(embeddings_NH[0])
            gradients_NH = torch.stack([gradients.get(rollout, zero_H) for rollout in forward.rollouts])
            terms.append((embeddings_NH * gradients_NH).sum())
        return torch.stack(terms).sum()

    def other_passes(self, policy: Policy, token_budget: int) -> tuple[Iterator[EmbeddingPass], int]:
        """Return the forwards of `others`, and their number."""
        if self.kept:
            return iter(self.kept), len(self.kept)
        return embedding_passes(policy, self.others, token_budget, self.regions, self.other_states)

    def trained_passes(
        self, policy: Policy, trained: Sequence[Rollout], token_budget: int
    ) -> tuple[Iterator[EmbeddingPass], int]:
        """Return forwards of trained rollouts that compute only their embeddings, and their number."""
        return embedding_passes(policy, trained, token_budget, self.regions, self.states)


def embedding_passes(
    policy: Policy,
    rollouts: Sequence[Rollout],
    token_budget: int,
    regions: Sequence[Region],
    states: Sequence[RandomState] = (),
) -> tuple[Iterator[EmbeddingPass], int]:
    """Return forwards without the output head, in the model's present mode, and their number.

    Args:
        policy: The model.
        rollouts: The rollouts.
        token_budget: Token budget of a micro-batch.
        regions: The pooled regions.
        states: State of dropout for each micro-batch; none: the present state.
    """
    sequences = sequences_of(rollouts)
    plan = policy.plan(sequences, token_budget)

    def passes() -> Iterator[EmbeddingPass]:
        for number, indices in enumerate(plan):
            with states[number].restored() if states else nullcontext():
                found = policy.embedding_pass(sequences, indices, regions)
            yield EmbeddingPass([rollouts[index] for index in indices], found)

    return passes(), len(plan)
