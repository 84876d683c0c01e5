"""The part of the gradient that flows through the embeddings."""

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from grace_exp.config.base import STRICT


@dataclass(config=STRICT, frozen=True, kw_only=True)
class PathwiseConfig:
    """The gradient of the mean reward through the embeddings; the policy gradient treats embeddings as constants."""

    weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the mean reward in the loss. 0: GRACE as published. 1 with advantages that are not rescaled
    (objective=exact): the gradient of the expected reward."""
    anchors: bool = True
    """Whether the embeddings of anchors and negatives get a gradient, or only those of trained rationales."""
    parts_every_n_steps: Annotated[int, Field(ge=1)] | None = 10
    """Steps between measurements of the norms of both parts of the gradient and of their cosine; null: never. In such a
    step the trained rationales need a second backward pass, and the weights a second gradient in memory."""
