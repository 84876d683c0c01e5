"""What a training step is fed: instances of texts with roles."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


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
