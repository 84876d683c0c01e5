"""What a training step is fed: instances of texts with roles."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from grace_exp.data.text_keys import text_key

_SIGNED = -(2**63)  # tensors hold signed numbers; of a text that there is not the digest is 0


class Role(StrEnum):
    """The part a text plays in its instance. In unsupervised data one text is both query and positive."""

    QUERY = "query"
    POSITIVE = "positive"
    NEGATIVE = "negative"


@dataclass(frozen=True, slots=True)
class Instance:
    """One row of data.

    Attributes:
        index: Position in the recipe; stable across runs, processes and resumes, and the root of the rollouts' seeds.
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
    """The texts of an instance by a number each, equal for equal texts wherever they are: query, positive, negatives.

    Args:
        instance: Its texts.
        negatives: How many numbers of negatives; those that there are not get one that no text has.
    """
    texts = [
        text_key(text.strip()) + _SIGNED
        for text in (instance.query, instance.positive, *instance.negatives[:negatives])
    ]
    return texts + [_SIGNED] * (2 + negatives - len(texts))
