"""Who writes rationales, and how they are sampled."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from grace_exp.config.base import STRICT
from grace_exp.config.vllm import VllmConfig


@dataclass(config=STRICT, frozen=True, kw_only=True)
class TailConfig:
    """When to stop waiting for a step's longest rationales: a token budget from the lengths of the step before."""

    quantile: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Of the lengths that the step before wrote, by all processes, those that were cut among them."""
    margin: Annotated[float, Field(ge=1)] = 1.5
    """The budget is so many times that length, rounded up, and `rollout.max_tokens` at most. More than 1 lets lengths
    grow: where more than 1 - quantile of them are cut, the next budget is larger."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class RolloutConfig:
    """Sampling of rationales. Training samples from the full distribution: there is no top_p, top_k or min_p to set."""

    engine: Literal["transformers", "vllm", "vllm_server"] = "transformers"
    """transformers: in this process, anywhere; vllm: in this process, beside the policy; vllm_server: over HTTP."""
    group_size: Annotated[int, Field(ge=1)] = 8
    """K: rationales sampled per trained text."""
    policy_role: Literal["positive", "query", "both"] = "positive"
    """Whose rationales are trained. positive (paper): K for the positive, one anchor for the query; query: mirrored;
    both: K for each, every sample rewarded against all K of the other side. Of unsupervised data, where both are one
    text, `both` trains 2 K rationales of it in two groups, each the anchor of the other."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of the group's rationales; the log-probs of the loss are those of the tempered distribution."""
    anchor_temperature: Annotated[float, Field(ge=0)] = 0.5
    """Of the single rationale of queries and negatives; 0 is greedy."""
    anchor_rationales: bool = True
    """Whether the side that is not trained gets rationales. false: its texts are embedded without one, in training,
    held-out figures and exports: queries with policy_role=positive; documents, negatives too, with query."""
    max_tokens: Annotated[int, Field(ge=1)] = 2048
    """Longest rationale, end token included; one that reaches it without an end token counts as truncated."""
    batch_tokens: Annotated[int, Field(ge=1)] = 65536
    """Upper bound of sequences x (prompt + max_tokens) that the transformers engine decodes at once."""
    overlap: Literal["none", "one_step"] = "none"
    """one_step: while step t trains, step t + 1 is written, with the weights that step t began with; its rationales are
    one step old when they are trained, which `objective.importance` corrects for. rollout=vllm_server only."""
    tail: TailConfig | None = None
    """null: every rationale may become `max_tokens` long; otherwise what exceeds the budget is cut, and counts as
    truncated. The first step of a run has no budget."""
    vllm: VllmConfig = Field(default_factory=VllmConfig)

    @property
    def mode(self) -> Literal["rationale", "query_only", "document_only"]:
        """Whose texts get rationales, in the encoder's words: every text's, or the trained side's."""
        if self.anchor_rationales:
            return "rationale"
        return "query_only" if self.policy_role == "query" else "document_only"
