"""The reward's terms and weights (METHOD: similarities between embeddings)."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from grace_exp.config.base import STRICT


@dataclass(config=STRICT, frozen=True, kw_only=True)
class TermConfig:
    """A term and its weight; weight 0 still computes and logs it."""

    weight: float = 1.0


@dataclass(config=STRICT, frozen=True, kw_only=True)
class HardNegativeConfig(TermConfig):
    """Similarity to the other instances of the batch."""

    formula: Literal["supervised", "unsupervised"] = "supervised"
    """supervised (paper): -mean over j of max over l of sim(q_i, h_j^l); unsupervised: -mean over j sim(h_i^k, q_j)."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class InfoNceConfig(TermConfig):
    """Log-softmax of the positive against the batch: a term whose negatives act on the advantage."""

    temperature: Annotated[float, Field(gt=0)] = 0.05


@dataclass(config=STRICT, frozen=True, kw_only=True)
class TermsConfig:
    """The terms; null leaves one out."""

    positive: TermConfig | None = None
    negative: TermConfig | None = None
    consistency: TermConfig | None = None
    hard_negative: HardNegativeConfig | None = None
    infonce: InfoNceConfig | None = None

    @model_validator(mode="after")
    def _any(self) -> Self:
        if all(term is None for term in vars(self).values()):
            raise ValueError("no reward term is set: give at least one of " + ", ".join(vars(self)))
        return self


@dataclass(config=STRICT, frozen=True, kw_only=True)
class TruncationConfig:
    """What a rationale gets that reached the length limit without an end token."""

    mode: Literal["absolute", "none"] = "absolute"
    """absolute: its reward is replaced by `value` (the paper's -1); none: it is scored as any other."""
    value: float = -1.0


@dataclass(config=STRICT, frozen=True, kw_only=True)
class RewardConfig:
    """total = sum of weight x term, divided by temperature; then the truncation rule."""

    name: Annotated[str, Field(min_length=1)]
    temperature: Annotated[float, Field(gt=0)] = 0.1
    terms: TermsConfig
    truncation: TruncationConfig = Field(default_factory=TruncationConfig)
