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
"""Number of instances for which `embed/*` is computed; the cost grows with its third power."""


@dataclass(frozen=True, eq=False)
class PairEmbeddings:
    """Embeddings by instance: B instances of all processes, each with up to M negatives.

    Attributes:
        queries: `[B, hidden]` float32.
        positives: `[B, hidden]` float32.
        negatives: `[B, M, hidden]` float32, 0 where there is none.
        has_negative: `[B, M]` bool.
        keys: A number for each text: query, positive and negatives, `[B, 2 + M]` int64.
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
        """Gather the embeddings of all processes.

        Args:
            embeddings: Embeddings of this process's queries, then positives, then all negatives, `[n, hidden]`.
            instances: This process's instances.
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
        """Return whether all embeddings are finite; the answer is the same on all processes."""
        return all(bool(torch.isfinite(part).all()) for part in (self.queries, self.positives, self.negatives))

    def contrast(self) -> Contrast:
        """Return the inputs of InfoNCE."""
        return Contrast(
            self.queries,
            self.positives,
            self.negatives[self.has_negative],
            query_keys=self.keys[:, 0],
            positive_keys=self.keys[:, 1],
            negative_keys=self.keys[:, 2:][self.has_negative],
        )

    def own_gradients(self, gradients: Contrast, own_rows: Callable[[Tensor], Tensor]) -> Tensor:
        """Return this process's part of the gradients, in the order of its embeddings, `[n, hidden]`.

        Args:
            gradients: Gradients of `contrast()`.
            own_rows: Returns this process's rows of a gathered tensor.
        """
        negatives = torch.zeros_like(self.negatives)
        negatives[self.has_negative] = gradients.negatives
        own_negatives = own_rows(negatives)[own_rows(self.has_negative)]
        return torch.cat([own_rows(gradients.queries), own_rows(gradients.positives), own_negatives])

    def metrics(self) -> dict[str, float]:
        """Return `embed/*` of the first instances."""
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
