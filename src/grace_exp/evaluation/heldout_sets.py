"""Held-out sets: pairs with human scores, and queries with the one document that answers each."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from grace_exp.config.evaluation import EvaluationSetConfig
from grace_exp.errors import ConfigError

_DRAW_SEED = 20250406  # only for the subsample: every run gets the same pairs, whatever its seed


@dataclass(frozen=True)
class HeldoutSet:
    """Texts in two columns, and their human scores.

    Attributes:
        first: Sentences or queries.
        second: Sentences to compare with, or documents; document i answers query i.
        scores: Human similarity of each pair; None for retrieval.
    """

    first: list[str]
    second: list[str]
    scores: NDArray[np.float64] | None


def load_set(name: str, config: EvaluationSetConfig) -> HeldoutSet:
    """Read a set and draw its subsample.

    Raises:
        ConfigError: Kind and source do not fit, or the set is smaller than `size`.
    """
    if (config.kind, config.source) == ("sts", "stsb"):
        from grace_exp.data.stsb import load_stsb

        pairs = load_stsb(config.split)
        whole = HeldoutSet(pairs.sentence1, pairs.sentence2, np.asarray(pairs.scores, dtype=np.float64))
    elif (config.kind, config.source) == ("retrieval", "wordnet"):
        from grace_exp.data.wordnet import load_wordnet

        # One query a gloss: a second example of the same sense would put its gloss twice among the documents.
        rows = {row["positive"]: row["query"] for row in load_wordnet(config.split)}
        whole = HeldoutSet(list(rows.values()), list(rows), None)
    else:
        raise ConfigError(
            f"evaluation.sets.{name}: kind={config.kind!r} with source={config.source!r}; there are sts with stsb, and "
            "retrieval with wordnet"
        )
    size = len(whole.first)
    if config.size is None:
        return whole
    if config.size > size:
        raise ConfigError(f"evaluation.sets.{name}.size = {config.size}: the set has {size}")
    chosen = np.sort(np.random.default_rng(_DRAW_SEED).choice(size, config.size, replace=False))
    return HeldoutSet(
        [whole.first[i] for i in chosen],
        [whole.second[i] for i in chosen],
        None if whole.scores is None else whole.scores[chosen],
    )
