"""How the rule of `mode=adaptive` is fitted."""

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from grace_exp.config.base import STRICT


@dataclass(config=STRICT, frozen=True, kw_only=True)
class AdaptiveConfig:
    """The rule that says to which texts a rationale is written (docs/modes.md), fitted by job=fit_adaptive."""

    share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Of the texts that get a rationale: those of which the rule expects most. null: those for which it expects a gain.
    """
    temperature: Annotated[float, Field(gt=0)] = 0.05
    """Of the softmax over a text's cosines with all partners, in which a gain is measured."""
    folds: Annotated[int, Field(ge=2)] = 5
    """Of the cross-validation that chooses the rule's regularisation and says what it is worth."""
