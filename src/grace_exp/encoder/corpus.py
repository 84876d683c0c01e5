"""Embed corpora of any size in blocks, so that memory holds only vectors and token ids of the whole corpus."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grace_exp.data.batch import Role
from grace_exp.encoder.embedding import Vectors, embed_texts
from grace_exp.policy.packing import Region

BLOCK = 8192
"""Number of texts that are sorted by length together, and gathered from the processes at one time."""


@dataclass(frozen=True)
class Corpus:
    """Embedded texts.

    Attributes:
        vectors: Embeddings, float32 [texts, hidden].
        rationale_ids: Token ids of their rationales, [texts x samples]; empty without rationales.
    """

    vectors: Vectors
    rationale_ids: list[NDArray[np.int32]]

    def written(self) -> NDArray[np.bool_]:
        """Return which texts have a rationale, [texts], where a text has one sample at most."""
        return np.array([len(ids) > 0 for ids in self.rationale_ids] or [False] * len(self.vectors))


def embed_corpus(
    texts: Sequence[str],
    role: Role,
    region: Region,
    *,
    hidden: int,
    samples: int,
    rationales: Sequence[tuple[int, ...]] | None = None,
    **settings: Any,
) -> Corpus:
    """Embed texts; equal texts are computed once.

    Args:
        texts: The texts, in any number.
        role: As in `embed_texts`.
        region: The pooling region.
        hidden: Length of an embedding.
        samples: Rationales per text.
        rationales: As in `embed_texts`.
        settings: The other arguments of `embed_texts`.
    """
    nothing: list[tuple[int, ...] | None] = [None] * len(texts)
    pairs = list(zip(texts, rationales or nothing, strict=True))
    distinct = list(dict.fromkeys(pairs))
    vectors = np.empty((len(distinct), hidden), dtype=np.float32)
    written: list[NDArray[np.int32]] = []
    for start in range(0, len(distinct), BLOCK):
        part = distinct[start : start + BLOCK]
        given = None if rationales is None else [ids for _, ids in part if ids is not None]
        block = embed_texts(
            [text for text, _ in part], role, regions=(region,), samples=samples, rationales=given, **settings
        )
        vectors[start : start + BLOCK] = block.embeddings[region]
        written += [np.array(completion.token_ids, dtype=np.int32) for completion in block.completions]
    row_of = {pair: row for row, pair in enumerate(distinct)}
    rows = [row_of[pair] for pair in pairs]
    ids = [written[row * samples + sample] for row in rows for sample in range(samples)] if written else []
    return Corpus(vectors[rows], ids)
