"""The reward's terms and weights (METHOD: similarities between embeddings)."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from grace_exp.config.base import STRICT
from grace_exp.config.own_parts import ModulePath, Name

WITHOUT_GRADIENT = ("log_rank", "format", "length")
"""Terms from which no embedding gets a gradient: ranks are step functions, the others read none."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class TermConfig:
    """A term and its weight; weight 0 still computes and logs it."""

    weight: float = 1.0
    """The term's factor in the total; 0: computed and logged only."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class NegativeConfig(TermConfig):
    """Similarity to the instance's own negatives."""

    anchor: Literal["query", "rollout"] = "query"
    """What is compared with them. query (paper): the same for all rationales of a group, so it moves no advantage;
    rollout: each rationale itself. Where the query's rationales are the trained ones, both are the rollout."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class HardNegativeConfig(TermConfig):
    """Similarity to the other instances of the batch."""

    anchor: Literal["query", "rollout", "auto"] = "query"
    """query (paper): -mean over j of max over l of sim(q_i, h_j^l), the same for all rationales of a group; rollout
    (released code, unsupervised): -mean over j of sim(h_i^k, q_j); auto, for mixed batches: query for instances that
    have a negative, rollout for those that have none."""
    equal_texts: Literal["keep", "mask"] = "mask"
    """Instances of the batch that hold a text of the own pair: keep (paper) counts them as other instances, mask leaves
    them out."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class InfoNceConfig(TermConfig):
    """Log-softmax of the positive against the batch: a term whose negatives act on the advantage."""

    temperature: Annotated[float, Field(gt=0)] = 0.05
    """Divides the cosines."""
    direction: Literal["rollout_to_anchors", "anchor_to_rollouts", "both"] = "rollout_to_anchors"
    """Who picks: the rollout its own anchor among all, the anchor this rollout among those of other texts, or the mean
    of both."""
    negatives: Literal["own", "all"] = "own"
    """Hard negatives among the candidates: those of the instance, or those of the whole batch."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class MarginRankConfig(TermConfig):
    """Share of candidates outranked times the margin."""

    margin: Literal["hardest", "mean"] = "hardest"
    """Distance of the positive from the nearest candidate, or from their mean."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class LogRankConfig(TermConfig):
    """1 - log rank / log N of the positive among the candidates."""

    negatives: Literal["own", "all"] = "own"
    """Hard negatives among the candidates: those of the instance, or those of the whole batch."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class SoftmaxNegativeConfig(TermConfig):
    """Similarity to the candidates, weighted by a softmax: the nearest count most."""

    temperature: Annotated[float, Field(gt=0)] = 0.05
    """Of the softmax over cosines: high, all count alike; low, the nearest alone."""
    negatives: Literal["own", "all"] = "own"
    """Hard negatives among the candidates: those of the instance, or those of the whole batch."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class LengthConfig(TermConfig):
    """Shorter rationales are better."""

    relative_to: Literal["budget", "group"] = "budget"
    """budget: what lies beyond `free` costs up to 1 at the budget's end; group: from 0.5 for the shortest rationale of
    a group to -0.5 for its longest."""
    budget: Annotated[int, Field(ge=1)] | None = None
    """Tokens; null is rollout.max_tokens."""
    free: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of the budget that costs nothing."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class CustomConfig(TermConfig):
    """A term of the user's own (docs/extending.md)."""

    path: ModulePath
    """A Python file (my_terms.py, relative to the working directory) or an import path (my_package.terms)."""
    name: Name
    """Of the function in it: from `RewardInputs` to values [groups, K], signed so that more is better."""
    needs: list[Literal["well_formed", "swapped", "bare"]] = Field(default_factory=list)
    """Fields of `RewardInputs` that the function reads and that cost something to fill."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class TermsConfig:
    """The terms; null leaves one out."""

    positive: TermConfig | None = None
    negative: NegativeConfig | None = None
    consistency: TermConfig | None = None
    hard_negative: HardNegativeConfig | None = None
    infonce: InfoNceConfig | None = None
    margin_rank: MarginRankConfig | None = None
    log_rank: LogRankConfig | None = None
    softmax_negative: SoftmaxNegativeConfig | None = None
    format: TermConfig | None = None
    length: LengthConfig | None = None
    faithfulness: TermConfig | None = None
    custom: CustomConfig | None = None

    @model_validator(mode="after")
    def _any(self) -> Self:
        if all(term is None for term in vars(self).values()):
            raise ValueError("no reward term is set: give at least one of " + ", ".join(vars(self)))
        return self


@dataclass(config=STRICT, frozen=True, kw_only=True)
class TruncationConfig:
    """What a rationale gets that reached the length limit without an end token."""

    mode: Literal["absolute", "group_relative", "mask", "none"] = "absolute"
    """absolute: its reward is `value` (the paper's -1); group_relative: the group's worst complete one less `margin`;
    mask: it takes no part in baseline and loss; none: it is scored as any other."""
    value: float = -1.0
    """For `absolute`."""
    margin: Annotated[float, Field(gt=0)] = 1.0
    """For `group_relative`, in the units of the total."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class EncoderConfig:
    """Whose embeddings are rewarded."""

    kind: Literal["policy", "frozen", "ema"] = "policy"
    """policy (paper): the weights being trained; frozen: those it started from (with LoRA at no memory, otherwise a
    copy of the model); ema: their moving average (a copy of the weights that train)."""
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """For `ema`: what an optimizer update keeps of the average."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class RewardConfig:
    """total = sum of weight x term, divided by temperature; then the truncation rule."""

    name: Annotated[str, Field(min_length=1)]
    """Name of the choice."""
    temperature: Annotated[float, Field(gt=0)] = 0.1
    """Divides the sum of weighted terms."""
    terms: TermsConfig
    truncation: TruncationConfig = Field(default_factory=TruncationConfig)
    encoder: EncoderConfig = Field(default_factory=EncoderConfig)
