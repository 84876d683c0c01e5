"""Hidden states of a sequence, pooled while it was written."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from grace_exp.policy.packing import Region

Method = Literal["mean", "last", "max"]


@dataclass(frozen=True, slots=True)
class StatePooling:
    """What an engine pools for a prompt and for each rationale of it.

    Attributes:
        start: Index of the prompt's first pooled token.
        method: As in `config.backbone.PoolingConfig`.
        layer: As in `config.backbone.PoolingConfig`.
    """

    start: int
    method: Method
    layer: int


@dataclass(frozen=True, slots=True, eq=False)
class PooledStates:
    """Pooled states of one sequence, separately for prompt and rationale, so that every region can be computed.

    Attributes:
        text_H: The pooled states of the prompt's tokens: their sum (`mean`), their largest values, or the last one,
            float32 [hidden].
        rationale_H: The same for the rationale's tokens.
        text_tokens: Number of pooled prompt tokens.
        rationale_tokens: Number of rationale tokens.
        method: The pooling method.
    """

    text_H: Tensor
    rationale_H: Tensor
    text_tokens: int
    rationale_tokens: int
    method: Method

    def embedding(self, region: Region) -> Tensor:
        """Return the embedding as `policy.pooling.pool` computes it, float32 [hidden]."""
        if region == "text":
            return self.text_H / self.text_tokens if self.method == "mean" else self.text_H
        if region == "rationale" or self.method == "last":
            return self.rationale_H / self.rationale_tokens if self.method == "mean" else self.rationale_H
        if self.method == "max":
            return torch.maximum(self.text_H, self.rationale_H)
        return (self.text_H + self.rationale_H) / (self.text_tokens + self.rationale_tokens)
