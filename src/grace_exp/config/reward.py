"""The reward's terms and weights (METHOD: similarities between embeddings)."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from grace_exp.config.base import STRICT
from grace_exp.config.own_parts import ModulePath, Name

WITHOUT_GRADIENT = ("log_rank", "format", "length")
"""Terms that give no embedding a gradient: ranks are step functions, and the others read no embedding."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class TermConfig:
    """A term and its weight; a term with weight 0 is still computed and logged."""

    weight: float = 1.0
    """The term's factor in the total; 0: the term is only computed and logged."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class NegativeConfig(TermConfig):
    """Similarity to the instance's own negatives."""

    anchor: Literal["query", "rollout"] = "query"
    """What is compared with the negatives. query (paper): the query, so all rationales of a group get the same value
    and no advantage changes; rollout: each rationale. If the query's rationales are trained, both settings mean the
    rollout."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class HardNegativeConfig(TermConfig):
    """Similarity to the other instances of the batch."""

    anchor: Literal["query", "rollout", "auto"] = "query"
    """query (paper): -mean over j of max over l of sim(q_i, h_j^l), the same for all rationales of a group; rollout
    (released code, unsupervised): -mean over j of sim(h_i^k, q_j); auto, for mixed batches: query for instances with a
    negative, rollout for instances without one."""
    equal_texts: Literal["keep", "mask"] = "mask"
    """Instances of the batch that share a text with this instance's pair. keep (paper): they count as other instances;
    mask: they are left out."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class InfoNceConfig(TermConfig):
    """Log-softmax of the positive against the batch; its negatives change the advantage."""

    temperature: Annotated[float, Field(gt=0)] = 0.05
    """Temperature: divides the cosines."""
    direction: Literal["rollout_to_anchors", "anchor_to_rollouts", "both"] = "rollout_to_anchors"
    """Direction of the softmax: from the rollout, its anchor among all anchors; from the anchor, this rollout among
    those of other texts; or the mean of both."""
    negatives: Literal["own", "all"] = "own"
    """Hard negatives among the candidates: none, those of the instance, or those of the whole batch."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class MarginRankConfig(TermConfig):
    """Share of the candidates that rank below the positive, times the margin."""

    margin: Literal["hardest", "mean"] = "hardest"
    """Margin: the distance of the positive from the nearest candidate, or from the mean of all."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class LogRankConfig(TermConfig):
    """1 - log rank / log N, with the rank of the positive among N candidates."""

    negatives: Literal["own", "all"] = "own"
    """Hard negatives among the candidates: none, those of the instance, or those of the whole batch."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class SoftmaxNegativeConfig(TermConfig):
    """Similarity to the candidates, weighted by a softmax, so that the nearest candidates count most."""

    temperature: Annotated[float, Field(gt=0)] = 0.05
    """Temperature of the softmax over cosines. At a high one all candidates count alike; at a low one only the
    nearest."""
    negatives: Literal["own", "all"] = "own"
    """Hard negatives among the candidates: none, those of the instance, or those of the whole batch."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class LengthConfig(TermConfig):
    """A reward for shorter rationales."""

    relative_to: Literal["budget", "group"] = "budget"
    """budget: tokens beyond `free` cost up to 1 at the end of the budget; group: 0.5 for the shortest rationale of a
    group down to -0.5 for its longest."""
    budget: Annotated[int, Field(ge=1)] | None = None
    """The budget in tokens; null: rollout.max_tokens."""
    free: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of the budget that is free of cost."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class CustomConfig(TermConfig):
    """A term that you write (docs/extending.md)."""

    path: ModulePath
    """A Python file (my_terms.py, relative to the working directory) or an import path (my_package.terms)."""
    name: Name
    """Name of the function: from `RewardInputs` to values [groups, K], where more is better."""
    needs: list[Literal["well_formed", "swapped", "bare"]] = Field(default_factory=list)
    """Fields of `RewardInputs` that the function reads and that are filled only on demand, because that costs time."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class TermsConfig:
    """The reward terms; null leaves a term out."""

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
    """The reward of a rationale that reached the length limit without an end token."""

    mode: Literal["absolute", "group_relative", "mask", "none"] = "absolute"
    """absolute: its reward is `value` (the paper's -1); group_relative: the lowest reward of the group's complete
    rationales minus `margin`; mask: the rationale is left out of baseline and loss; none: it is scored as any other."""
    value: float = -1.0
    """Reward of a truncated rationale with `absolute`."""
    margin: Annotated[float, Field(gt=0)] = 1.0
    """Margin of `group_relative`, in the units of the total."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class EncoderConfig:
    """The model whose embeddings are rewarded."""

    kind: Literal["policy", "frozen", "ema"] = "policy"
    """policy (paper): the weights in training; frozen: the initial weights (a copy of the model, or none with LoRA);
    ema:
    the moving average of the weights in training (a copy of the trained weights)."""
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """For `ema`: the share of the average that an optimizer update keeps."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class RewardConfig:
    """total = sum of weight x term, divided by temperature; then the truncation rule."""

    name: Annotated[str, Field(min_length=1)]
    """Name of this choice of `reward=`."""
    temperature: Annotated[float, Field(gt=0)] = 0.1
    """Divides the sum of weighted terms."""
    terms: TermsConfig
    truncation: TruncationConfig = Field(default_factory=TruncationConfig)
    encoder: EncoderConfig = Field(default_factory=EncoderConfig)
