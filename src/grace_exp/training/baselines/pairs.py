"""The embeddings of an update's texts, over all processes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grace_exp.data.batch import Instance, instance_keys
from grace_exp.reward.diagnostics import embedding_metrics
from grace_exp.reward.inputs import RewardInputs
from grace_exp.training.baselines.infonce_loss import Contrast

MEASURED = 512
"""Instances that `embed/*` is computed on: its cost grows with the third power of their number."""


@dataclass(frozen=True, eq=False)
class PairEmbeddings:
    """Embeddings by instance, B instances of all processes with up to M negatives each.

    Attributes:
        queries: `[B, hidden]` float32.
        positives: `[B, hidden]` float32.
        negatives: `[B, M, hidden]` float32, zero where there is none.
        has_negative: `[B, M]` bool.
        keys: The texts of query, positive and negatives by a number each, `[B, 2 + M]` int64.
    """

    queries: Tensor
    positives: Tensor
    negatives: Tensor
    has_negative: Tensor
    keys: Tensor

    @classmethod
    def gathered(
        cls, embeddings: Tensor, instances: Sequence[Instance], gather: Callable[[Tensor], Tensor]
    ) -> "PairEmbeddings":
        """Put the processes' embeddings together.

        Args:
            embeddings: Of this process's queries, then positives, then all negatives, `[n, hidden]`.
            instances: This process's.
            gather: Concatenates a tensor over processes along its first dimension, in rank order.
        """
        device, count = embeddings.device, len(instances)
        lengths = torch.tensor([len(instance.negatives) for instance in instances], device=device)
        most = int(gather(lengths).max())
        mask = torch.arange(most, device=device) < lengths[:, None]
        negatives = embeddings.new_zeros(count, most, embeddings.shape[1])
        negatives[mask] = embeddings[2 * count :]
        keys = torch.tensor([instance_keys(instance, most) for instance in instances], device=device)
        return cls(
            gather(embeddings[:count]),
            gather(embeddings[count : 2 * count]),
            gather(negatives),
            gather(mask),
            gather(keys),
        )

    def finite(self) -> bool:
        """Whether no embedding holds nan or inf; the same on all processes."""
        return all(bool(torch.isfinite(part).all()) for part in (self.queries, self.positives, self.negatives))

    def contrast(self) -> Contrast:
        """What InfoNCE is computed on."""
        return Contrast(
            self.queries,
            self.positives,
            self.negatives[self.has_negative],
            query_keys=self.keys[:, 0],
            positive_keys=self.keys[:, 1],
            negative_keys=self.keys[:, 2:][self.has_negative],
        )

    def own_gradients(self, gradients: Contrast, own_rows: Callable[[Tensor], Tensor]) -> Tensor:
        """This process's part of the gradients, in the order of the embeddings it gave, `[n, hidden]`.

        Args:
            gradients: Of `contrast()`.
            own_rows: This process's rows of a gathered tensor.
        """
        negatives = torch.zeros_like(self.negatives)
        negatives[self.has_negative] = gradients.negatives
        own_negatives = own_rows(negatives)[own_rows(self.has_negative)]
        return torch.cat([own_rows(gradients.queries), own_rows(gradients.positives), own_negatives])

    def metrics(self) -> dict[str, float]:
        """`embed/*`, of the first instances."""
        positives = self.positives[:MEASURED, None]
        nothing = torch.zeros(positives.shape[:2], device=positives.device)
        any_negative = bool(self.has_negative[:MEASURED].any())
        return embedding_metrics(
            RewardInputs(
                rollouts_GKH=positives,
                anchors_GAH=self.queries[:MEASURED, None],
                negatives_GMH=self.negatives[:MEASURED] if any_negative else None,
                negative_mask_GM=self.has_negative[:MEASURED] if any_negative else None,
                truncated_GK=nothing.bool(),
                lengths_GK=nothing,
            )
        )
