"""Who writes rationales, and how they are sampled."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from grace_exp.config.base import STRICT


@dataclass(config=STRICT, frozen=True, kw_only=True)
class RolloutConfig:
    """Sampling of rationales. Training samples from the full distribution: there is no top_p, top_k or min_p to set."""

    engine: Literal["transformers"] = "transformers"
    group_size: Annotated[int, Field(ge=1)] = 8
    """K: rationales sampled per positive text."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of the group's rationales; the log-probs of the loss are those of the tempered distribution."""
    anchor_temperature: Annotated[float, Field(ge=0)] = 0.5
    """Of the single rationale of queries and negatives; 0 is greedy."""
    max_tokens: Annotated[int, Field(ge=1)] = 2048
    """Longest rationale, end token included; one that reaches it without an end token counts as truncated."""
    batch_tokens: Annotated[int, Field(ge=1)] = 65536
    """Upper bound of sequences x (prompt + max_tokens) that the transformers engine decodes at once."""
