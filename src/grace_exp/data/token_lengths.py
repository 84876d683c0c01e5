"""How many tokens the texts of a source have, with the backbone's own tokenizer and template."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from grace_exp.data.batch import Role
from grace_exp.data.prompts import PromptBuilder
from grace_exp.data.text_keys import batches, kept_beside, row_texts

if TYPE_CHECKING:
    import datasets

    from grace_exp.data.sources import LoadedSource

Counts = NDArray[np.int32]

VERSION = 1
"""Part of the file's name; raise it when texts are tokenised differently."""


@dataclass(frozen=True)
class TokenLengths:
    """Numbers of tokens of the texts of a source, without the template.

    Attributes:
        query: Of queries, [rows]; of unsupervised rows the text's.
        positive: Of positives, [rows]; of unsupervised rows the text's.
        negatives: Of negatives, [rows, most negatives], -1 where a row has fewer.
        room: For each role, how many tokens of a text fit into a prompt.
    """

    query: Counts
    positive: Counts
    negatives: Counts
    room: Mapping[Role, int]

    def of(self, role: str) -> Counts:
        """Return the numbers of the texts of a role, [rows, texts], -1 where there is none."""
        return {"query": self.query[:, None], "positive": self.positive[:, None], "negative": self.negatives}[role]

    def outside(self, role: str, limit: int, *, shorter: bool) -> NDArray[np.bool_]:
        """Which rows have a text of the role with fewer (or more) tokens than the limit, [rows]."""
        counts = self.of(role)
        wrong = counts < limit if shorter else counts > limit
        found: NDArray[np.bool_] = np.logical_or.reduce(wrong & (counts >= 0), axis=1)
        return found

    def cut(self, roles: Iterable[str]) -> NDArray[np.bool_]:
        """Which rows have a text of these roles that does not fit into its prompt, [rows]."""
        found = np.zeros(len(self.query), dtype=bool)
        for role in roles:
            found |= self.outside(role, self.room[Role(role)], shorter=False)
        return found


def token_lengths(
    source: "LoadedSource", prompts: PromptBuilder, tokenizer: str, advance: Callable[[int], None] | None = None
) -> TokenLengths:
    """Tokenise every text of a prepared source once; the counts are stored beside the rows.

    Args:
        source: A source from `load_source`, or cleaned.
        prompts: The prompts of the run's backbone.
        tokenizer: An identifier of the tokenizer, such as its digest.
        advance: Called with the number of rows that are newly done.
    """
    name = hashlib.sha256(f"{VERSION} {tokenizer}".encode()).hexdigest()[:16]

    def compute(rows: "datasets.Dataset") -> Counts:
        parts = []
        for batch in batches(rows):
            parts.append(_counts(list(row_texts(batch)), prompts))
            if advance is not None:
                advance(len(parts[-1]))
        width = max(part.shape[1] for part in parts)
        return np.concatenate([np.pad(p, ((0, 0), (0, width - p.shape[1])), constant_values=-1) for p in parts])

    counts: Counts = kept_beside(source, f"tokens-{name}", compute)
    positive = counts[:, 1] if counts.shape[1] > 1 else counts[:, 0]
    return TokenLengths(counts[:, 0], positive, counts[:, 2:], {role: prompts.room(role) for role in Role})


def _counts(texts: Sequence[Sequence[str]], prompts: PromptBuilder) -> Counts:
    flat = iter(prompts.text_lengths([text for row in texts for text in row]))
    counts = np.full((len(texts), max(map(len, texts))), -1, dtype=np.int32)
    for row, found in enumerate(texts):
        counts[row, : len(found)] = [next(flat) for _ in found]
    return counts
