"""What is measured before and after training."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from grace_exp.config.base import STRICT


@dataclass(config=STRICT, frozen=True, kw_only=True)
class EvaluationSetConfig:
    """One held-out set."""

    kind: Literal["sts", "retrieval"]
    """sts: Spearman of cosine and human score; retrieval: nDCG@10 of an example's gloss among all glosses."""
    source: Literal["stsb", "wordnet"]
    split: Literal["dev", "test"] = "dev"
    size: Annotated[int, Field(ge=2)] | None = None
    """Pairs drawn with a fixed seed of its own; null takes all."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class EvaluationConfig:
    """Greedy rationales on held-out sets, before the first step and after the last."""

    name: Annotated[str, Field(min_length=1)]
    sets: dict[str, EvaluationSetConfig] = Field(default_factory=dict)
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Rationale budget; null: as in training."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0 is greedy; above it, sampling is seeded."""
    before: bool = True
    after: bool = True
    bootstrap: Annotated[int, Field(ge=0)] = 1000
    """Resamples for the 95 % intervals; 0: no intervals."""
    minilm: bool = False
    """Score all-MiniLM-L6-v2 on the same sets, for scale."""
