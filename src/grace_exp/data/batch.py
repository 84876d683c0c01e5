"""The input of a training step: instances of texts with roles."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from grace_exp.data.text_keys import text_key

_SIGNED = -(2**63)  # tensors hold signed numbers; the digest of a missing text is 0


class Role(StrEnum):
    """The role of a text in its instance. In unsupervised data one text is both query and positive."""

    QUERY = "query"
    POSITIVE = "positive"
    NEGATIVE = "negative"


@dataclass(frozen=True, slots=True)
class Instance:
    """One row of data.

    Attributes:
        index: Position in the recipe: stable across runs, processes and resumes; the seeds of rollouts derive from it.
        query: The anchor text.
        positive: The text whose rationales are trained on.
        negatives: Texts that should be far from the query; empty in unsupervised data.
        source: Name of the source in the recipe.
    """

    index: int
    query: str
    positive: str
    negatives: tuple[str, ...]
    source: str


@dataclass(frozen=True, slots=True)
class TextBatch:
    """The instances of one step (or of one process's share of it)."""

    step: int
    instances: Sequence[Instance]


def instance_keys(instance: Instance, negatives: int) -> list[int]:
    """Return a number for each text of an instance: query, positive, negatives. Equal texts have equal numbers.

    Args:
        instance: The instance.
        negatives: How many negatives get a number; a missing negative gets one that no text has.
    """
    texts = [
        text_key(text.strip()) + _SIGNED
        for text in (instance.query, instance.positive, *instance.negatives[:negatives])
    ]
    return texts + [_SIGNED] * (2 + negatives - len(texts))
