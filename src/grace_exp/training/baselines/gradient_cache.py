"""Gradients of a loss over a whole batch of embeddings, with the memory of one micro-batch.

GradCache (arXiv 2101.06983) works in three steps. Every text is embedded without gradients. The loss gives the gradient
of each embedding. Then each micro-batch is embedded again, with gradients and the same dropout, and the gradients of
its embeddings are carried into the weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grace_exp.policy.packing import MicroBatch, Region, TextSequence
from grace_exp.policy.policy import Policy
from grace_exp.policy.random_state import RandomState


class GradientCache:
    """The embeddings of an update's texts, and the backward pass from their gradients into the weights.

    The last micro-batch's forward is kept for the backward pass, so a batch of one micro-batch is computed once.

    Attributes:
        embeddings_NH: `[n, hidden]` float32 without gradient, view by view, each in its order.
    """

    def __init__(
        self,
        policy: Policy,
        views: Sequence[Sequence[TextSequence]],
        region: Region,
        token_budget: int,
        *,
        keep_all: bool = False,
    ) -> None:
        """Embed all texts in the present mode of the policy (training or evaluation).

        Args:
            policy: The model.
            views: Texts. A forward never holds texts of two views: equal texts of one view are computed once and share
                their dropout, equal texts of different views do not.
            region: The pooled region.
            token_budget: Token budget of a micro-batch.
            keep_all: Keep every forward: it needs no second one, but memory for all activations.
        """
        self._policy = policy
        self._region = region
        self._parts: list[_Part] = []
        first = 0
        plans = [(view, policy.plan(view, token_budget)) for view in views]
        remaining = sum(len(plan) for _, plan in plans)
        for view, plan in plans:
            for indices in plan:
                remaining -= 1
                # The output head is not computed.
                batch = policy.collate(view, indices).without_targets()
                rows_N = torch.tensor(indices, dtype=torch.long, device=batch.input_ids_BL.device) + first
                state = RandomState(batch.input_ids_BL.device)
                with torch.set_grad_enabled(keep_all or remaining == 0):
                    found_NH = self._embed(batch)
                self._parts.append(_Part(batch, rows_N, state, found_NH))
            first += len(view)
        first_NH = self._parts[0].embeddings_NH
        self.embeddings_NH = first_NH.new_zeros(first, first_NH.shape[1])
        for part in self._parts:
            self.embeddings_NH[part.rows_N] = part.embeddings_NH.detach()

    def backward(self, gradients_NH: Tensor, backward: Callable[[Tensor, bool], None]) -> None:
        """Carry gradients of the embeddings into the weights; may be called once.

        Args:
            gradients_NH: `[n, hidden]`.
            backward: Called with a loss whose gradient is the micro-batch's, and whether it is the last one.
        """
        parts, self._parts = self._parts, []
        while parts:
            part = parts.pop()  # the last part, whose forward is kept, comes first
            embeddings_NH = part.embeddings_NH
            if not embeddings_NH.requires_grad:
                with part.state.restored():
                    embeddings_NH = self._embed(part.batch)
            backward((embeddings_NH * gradients_NH[part.rows_N]).sum(), not parts)

    def _embed(self, batch: MicroBatch) -> Tensor:
        embeddings_NH: Tensor = self._policy(batch, (self._region,), embedding_gradients=True)[0][self._region]
        return embeddings_NH


@dataclass(frozen=True, eq=False)
class _Part:
    batch: MicroBatch
    rows_N: Tensor
    state: RandomState
    embeddings_NH: Tensor
