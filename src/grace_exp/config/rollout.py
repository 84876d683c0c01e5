"""Which engine writes rationales, and how they are sampled."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from grace_exp.config.base import STRICT
from grace_exp.config.vllm import VllmConfig


@dataclass(config=STRICT, frozen=True, kw_only=True)
class TailConfig:
    """A token limit that follows from the lengths of the step before, so that a few long ones do not delay a step."""

    quantile: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Quantile of the lengths that all processes wrote in the step before, cut rationales included."""
    margin: Annotated[float, Field(ge=1)] = 1.5
    """The limit is this factor times the quantile, rounded up, and at most `rollout.max_tokens`. A factor above 1 lets
    lengths grow: if more than 1 - quantile of the rationales are cut, the next limit is larger."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class RolloutConfig:
    """Sampling of rationales. Training samples from the full distribution, so there is no top_p, top_k or min_p."""

    engine: Literal["transformers", "vllm", "vllm_server"] = "transformers"
    """transformers: in this process, on any device; vllm: in this process, beside the policy; vllm_server: over
    HTTP."""
    group_size: Annotated[int, Field(ge=1)] = 8
    """K: rationales sampled per trained text."""
    policy_role: Literal["positive", "query", "both"] = "positive"
    """Whose rationales are trained. positive (paper): K of the positive, with one anchor of the query; query: the
    reverse;
    both: K of each, and every sample is rewarded against all K of the other side. In unsupervised data both sides are
    one
    text: `both` trains 2 K rationales of it in two groups, and each group is the other's anchor."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Temperature of the group's rationales; the loss uses the log-probs of the tempered distribution."""
    anchor_temperature: Annotated[float, Field(ge=0)] = 0.5
    """Temperature of the single rationale of queries and negatives; 0 is greedy."""
    anchor_rationales: bool = True
    """Whether the side that is not trained gets rationales. false: its texts are embedded without a rationale in
    training, held-out figures and exports: queries with policy_role=positive; documents and negatives with
    policy_role=query."""
    max_tokens: Annotated[int, Field(ge=1)] = 2048
    """Token limit of a rationale, end token included; a rationale that reaches it without an end token is truncated."""
    batch_tokens: Annotated[int, Field(ge=1)] = 65536
    """Token budget of the transformers engine: the upper bound of sequences x (prompt + max_tokens) that it decodes at
    once."""
    overlap: Literal["none", "one_step"] = "none"
    """one_step: step t + 1 is written while step t trains, with the weights from before step t. Its rationales are one
    step old when they are trained, which `objective.importance` corrects for. rollout=vllm_server only."""
    tail: TailConfig | None = None
    """null: every rationale may have `max_tokens` tokens. Otherwise longer rationales are cut at the computed limit and
    count as truncated. The first step of a run has no such limit."""
    vllm: VllmConfig = Field(default_factory=VllmConfig)

    @property
    def mode(self) -> Literal["rationale", "query_only", "document_only"]:
        """Whose texts get rationales, by the encoder's names: all texts, or those of the trained side."""
        if self.anchor_rationales:
            return "rationale"
        return "query_only" if self.policy_role == "query" else "document_only"
