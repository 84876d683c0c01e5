"""Which texts count as hard negatives."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from grace_exp.config.base import STRICT


@dataclass(config=STRICT, frozen=True, kw_only=True)
class MiningConfig:
    """Settings of sentence-transformers' miner: candidates are the positives of other rows, ranked by cosine."""

    negatives: Annotated[int, Field(ge=1)] = 1
    """Negatives a pair; a pair for which fewer are found is left out."""
    range_min: Annotated[int, Field(ge=0)] = 0
    """Leave out the nearest candidates, which may be unlabelled positives."""
    range_max: Annotated[int, Field(ge=1)] | None = 100
    """Look no further than this rank."""
    relative_margin: Annotated[float, Field(ge=0, le=1)] | None = 0.05
    """A negative's cosine is at most (1 - this) times that of the positive; null: no such limit."""
    max_score: float | None = None
    """A negative's cosine is at most this."""
    sampling: Literal["top", "random"] = "top"
    """Take the hardest candidates, or any of the range."""
