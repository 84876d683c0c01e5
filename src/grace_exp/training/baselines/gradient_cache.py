"""Gradients of a loss over a whole batch of embeddings, with the memory of one micro-batch.

GradCache (arXiv 2101.06983): first every text is embedded without gradients; the loss then gives the gradient of each
embedding; then each micro-batch is embedded again, with gradients and the same dropout, and the gradients of its
embeddings are carried on into the weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grace_exp.policy.packing import MicroBatch, Region, TextSequence
from grace_exp.policy.policy import Policy
from grace_exp.policy.random_state import RandomState


class GradientCache:
    """The embeddings of an update's texts, and the way back from their gradients to the weights.

    The last micro-batch's forward is kept for the way back, so that a batch of one micro-batch is computed once.

    Attributes:
        embeddings: `[n, hidden]` float32 without gradient, view after view, each in its order.
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
        """Embed all texts, in the mode (training or not) that the policy is in.

        Args:
            policy: The model.
            views: Texts. No forward holds texts of two views: equal texts of one view are computed once and share their
                dropout, those of different views do not.
            region: What is pooled.
            token_budget: Of a micro-batch.
            keep_all: Keep every forward: no second one, for the memory of all activations.
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
                # Nothing is asked of the output head.
                batch = policy.collate(view, indices).without_targets()
                rows = torch.tensor(indices, dtype=torch.long, device=batch.input_ids.device) + first
                state = RandomState(batch.input_ids.device)
                with torch.set_grad_enabled(keep_all or remaining == 0):
                    found = self._embed(batch)
                self._parts.append(_Part(batch, rows, state, found))
            first += len(view)
        hidden = self._parts[0].embeddings.shape[1]
        self.embeddings = self._parts[0].embeddings.new_zeros(first, hidden)
        for part in self._parts:
            self.embeddings[part.rows] = part.embeddings.detach()

    def backward(self, gradients: Tensor, backward: Callable[[Tensor, bool], None]) -> None:
        """Carry gradients of the embeddings on into the weights; once.

        Args:
            gradients: `[n, hidden]`.
            backward: Called with a loss whose gradient is the micro-batch's, and whether it is the last one.
        """
        parts, self._parts = self._parts, []
        while parts:
            part = parts.pop()  # the last one, whose forward is kept, first
            embeddings = part.embeddings
            if not embeddings.requires_grad:
                with part.state.restored():
                    embeddings = self._embed(part.batch)
            backward((embeddings * gradients[part.rows]).sum(), not parts)

    def _embed(self, batch: MicroBatch) -> Tensor:
        embeddings: Tensor = self._policy(batch, (self._region,), embedding_gradients=True)[0][self._region]
        return embeddings


@dataclass(frozen=True, eq=False)
class _Part:
    batch: MicroBatch
    rows: Tensor
    state: RandomState
    embeddings: Tensor
