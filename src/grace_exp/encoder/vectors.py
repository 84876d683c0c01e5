"""Cosines, and the last operations on embeddings, as in sentence-transformers."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Vectors = NDArray[np.float32]


def finished(vectors: NDArray[np.float32], dimensions: int | None, normalize: bool) -> NDArray[np.float32]:
    """Return embeddings [n, hidden] cut to the first dimensions, and then scaled to length 1."""
    found = vectors[:, :dimensions]
    if normalize:
        found = found / np.linalg.norm(found, axis=1, keepdims=True)
    return np.ascontiguousarray(found)


def cosine_matrix(left: Any, right: Any) -> Tensor:
    """Return the cosine of every pair: [n, hidden] and [m, hidden] to [n, m]; a single embedding counts as n = 1."""
    return _unit(left) @ _unit(right).T


def cosine_pairs(left: Any, right: Any) -> Tensor:
    """Return the cosine of corresponding embeddings: [n, hidden] twice to [n]."""
    return (_unit(left) * _unit(right)).sum(dim=-1)


def _unit(embeddings: Any) -> Tensor:
    if isinstance(embeddings, list):
        embeddings = torch.stack([torch.as_tensor(embedding) for embedding in embeddings])
    tensor = torch.atleast_2d(torch.as_tensor(embeddings, dtype=torch.float32))
    return torch.nn.functional.normalize(tensor, dim=-1)
