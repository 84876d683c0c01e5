"""Which texts are chosen as hard negatives."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from grace_exp.config.base import STRICT


@dataclass(config=STRICT, frozen=True, kw_only=True)
class MiningConfig:
    """Settings of sentence-transformers' miner. The positives of other rows are candidates, ranked by cosine."""

    negatives: Annotated[int, Field(ge=1)] = 1
    """Negatives per pair; a pair with fewer is left out."""
    range_min: Annotated[int, Field(ge=0)] = 0
    """Skip so many nearest candidates, which may be unlabelled positives."""
    range_max: Annotated[int, Field(ge=1)] | None = 100
    """Consider candidates up to this rank only; null: all."""
    relative_margin: Annotated[float, Field(ge=0, le=1)] | None = 0.05
    """A negative's cosine is at most (1 - this) times the positive's cosine; null: no such limit."""
    max_score: float | None = None
    """A negative's cosine is at most this; null: no such limit."""
    sampling: Literal["top", "random"] = "top"
    """top: take the hardest candidates; random: draw from all in the range."""
