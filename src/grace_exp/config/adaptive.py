"""Settings of the rule that `mode=adaptive` uses."""

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from grace_exp.config.base import STRICT


@dataclass(config=STRICT, frozen=True, kw_only=True)
class AdaptiveConfig:
    """Settings of job=fit_adaptive. The rule chooses the texts that get a rationale (docs/modes.md)."""

    share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the texts that get a rationale: those with the largest expected gain. null: all with an expected
    gain."""
    temperature: Annotated[float, Field(gt=0)] = 0.05
    """Temperature of the softmax over a text's cosines with all partners; a gain is measured on it."""
    folds: Annotated[int, Field(ge=2)] = 5
    """Number of folds of the cross-validation that chooses the rule's regularisation and estimates its quality."""
