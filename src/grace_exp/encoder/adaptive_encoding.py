"""Embed texts, with a rationale for those that a rule chooses."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from grace_exp.data.batch import Role
from grace_exp.encoder.adaptive_rule import AdaptiveRule
from grace_exp.encoder.corpus import Corpus, embed_corpus
from grace_exp.policy.packing import Region


def embed_adaptively(
    texts: Sequence[str],
    role: Role,
    region: Region,
    rule: AdaptiveRule,
    *,
    samples: int,
    max_tokens: int,
    advance: Callable[[int], None],
    **settings: Any,
) -> Corpus:
    """Embed all texts without rationale, and then the texts that the rule chooses with one.

    The cache stores both kinds of embeddings under the keys of the other modes; the rule only decides which of them a
    text gets.

    Args:
        texts: Any number of them.
        role: As in `embed_corpus`.
        region: Pooling region of embeddings with rationale.
        rule: The rule.
        samples: Rationales per chosen text.
        max_tokens: Token limit of a rationale.
        advance: Called with the number of further texts done.
        settings: The other arguments of `embed_corpus`.

    Returns:
        The embeddings, and `samples` rationales per text; those of a text that was not chosen have no tokens.
    """
    plain = embed_corpus(texts, role, "text", samples=samples, max_tokens=0, **settings)
    chosen = np.flatnonzero(rule.writes(plain.vectors, role)) if len(texts) else np.empty(0, np.int64)
    advance(len(set(texts)) - len({texts[row] for row in chosen}))
    vectors = plain.vectors.copy()
    ids = [np.empty(0, np.int32)] * (len(texts) * samples)
    if len(chosen):
        chosen_texts = [texts[row] for row in chosen]
        written = embed_corpus(
            chosen_texts, role, region, samples=samples, max_tokens=max_tokens, advance=advance, **settings
        )
        vectors[chosen] = written.vectors
        for place, row in enumerate(chosen):
            ids[row * samples : (row + 1) * samples] = written.rationale_ids[place * samples : (place + 1) * samples]
    return Corpus(vectors, ids)
