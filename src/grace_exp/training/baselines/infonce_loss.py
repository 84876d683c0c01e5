"""InfoNCE with in-batch and hard negatives, and its gradient with respect to the embeddings."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

ROWS_AT_ONCE = 1024
"""Queries whose logits exist at one time; for 65536 queries and 131072 candidates all logits would take 34 GB."""


@dataclass(frozen=True, eq=False)
class Contrast:
    """The texts of an update: positive i belongs to query i; all other positives and all negatives are candidates.

    Attributes:
        queries: `[B, hidden]` float32.
        positives: `[B, hidden]` float32.
        negatives: `[N, hidden]` float32; N may be 0.
        query_keys: A number for each text, `[B]` int64. A candidate with the text of the query or of its positive is
            not a negative and is left out. None: all texts differ.
        positive_keys: The same for positives, `[B]`.
        negative_keys: The same for negatives, `[N]`.
    """

    queries: Tensor
    positives: Tensor
    negatives: Tensor
    query_keys: Tensor | None = None
    positive_keys: Tensor | None = None
    negative_keys: Tensor | None = None

    def losses(self, temperature: float, rows: slice = slice(None)) -> Tensor:
        """Return -log of the softmax share of each query's positive, for the queries `rows`, in nats.

        This is the loss of van den Oord et al. (arXiv 1807.03748) with cosine similarities. The mean of it is
        sentence-transformers' MultipleNegativesRankingLoss with scale 1 / temperature.

        Args:
            temperature: Divides the cosines.
            rows: Rows of the queries.
        """
        places = torch.arange(len(self.queries), device=self.queries.device)[rows]
        with torch.autocast(self.queries.device.type, enabled=False):
            candidates = functional.normalize(torch.cat([self.positives, self.negatives]).float(), dim=-1)
            logits = functional.normalize(self.queries[rows].float(), dim=-1) @ candidates.T / temperature
        return functional.cross_entropy(
            logits.masked_fill(self._same_text(places), -torch.inf), places, reduction="none"
        )

    def _same_text(self, places: Tensor) -> Tensor:
        """Return candidates with a text of the queries at `places`, except the positive, `[rows, B + N]` bool."""
        count = len(self.positives) + len(self.negatives)
        if self.query_keys is None or self.positive_keys is None or self.negative_keys is None:
            return torch.zeros(len(places), count, dtype=torch.bool, device=places.device)
        keys = torch.cat([self.positive_keys, self.negative_keys])
        same = (keys == self.query_keys[places, None]) | (keys == self.positive_keys[places, None])
        return same.scatter(1, places[:, None], False)

    def gradients(self, temperature: float) -> tuple[Tensor, "Contrast"]:
        """Return the mean loss and its gradients, computed for a part of the queries at a time.

        Returns:
            The loss `[]`, detached, and a `Contrast` with gradients in place of the embeddings.
        """
        leaves = [t.detach().requires_grad_() for t in (self.queries, self.positives, self.negatives)]
        keys = (self.query_keys, self.positive_keys, self.negative_keys)
        whole = Contrast(leaves[0], leaves[1], leaves[2], *keys)
        count = len(self.queries)
        total = self.queries.new_zeros(())
        with torch.enable_grad():
            for start in range(0, count, ROWS_AT_ONCE):
                part = whole.losses(temperature, slice(start, start + ROWS_AT_ONCE)).sum() / count
                part.backward()
                total = total + part.detach()
        found = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
        return total, Contrast(*found)
