"""The part of the gradient that flows through the embeddings."""

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from grace_exp.config.base import STRICT


@dataclass(config=STRICT, frozen=True, kw_only=True)
class PathwiseConfig:
    """The gradient of the mean reward through the embeddings, which the policy gradient alone takes as given."""

    weight: Annotated[float, Field(ge=0)] = 0.0
    """Of the mean reward in the loss. 0: GRACE as published. 1 with advantages that are not rescaled
    (objective=exact): the gradient of the expected reward."""
    anchors: bool = True
    """Whether the embeddings of anchors and negatives get a gradient, or only those of trained rationales."""
    parts_every_n_steps: Annotated[int, Field(ge=1)] | None = 10
    """Measures the norms of both parts of the gradient, and their cosine, every n steps; in such a step the trained
    rationales have a second backward pass, and the weights a second gradient in memory. null: never."""
