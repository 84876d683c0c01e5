"""Hidden states of a sequence that were pooled while it was written."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from grace_exp.policy.packing import Region

Method = Literal["mean", "last", "max"]


@dataclass(frozen=True, slots=True)
class StatePooling:
    """What an engine should pool of a prompt and of each rationale that it writes to it.

    Attributes:
        start: Index of the prompt's first pooled token.
        method: As in `config.backbone.PoolingConfig`.
        layer: The same.
    """

    start: int
    method: Method
    layer: int


@dataclass(frozen=True, slots=True, eq=False)
class PooledStates:
    """Of one sequence, prompt and rationale apart, so that every region can be made from them.

    Attributes:
        text: Of the prompt's pooled tokens: their sum (`mean`), their largest values, or the last one, float32
            [hidden].
        rationale: The same of the rationale's tokens.
        text_tokens: Number of the former.
        rationale_tokens: Number of the latter.
        method: How they are pooled.
    """

    text: Tensor
    rationale: Tensor
    text_tokens: int
    rationale_tokens: int
    method: Method

    def embedding(self, region: Region) -> Tensor:
        """The embedding that `policy.pooling.pool` gives, float32 [hidden]."""
        if region == "text":
            return self.text / self.text_tokens if self.method == "mean" else self.text
        if region == "rationale" or self.method == "last":
            return self.rationale / self.rationale_tokens if self.method == "mean" else self.rationale
        if self.method == "max":
            return torch.maximum(self.text, self.rationale)
        return (self.text + self.rationale) / (self.text_tokens + self.rationale_tokens)
