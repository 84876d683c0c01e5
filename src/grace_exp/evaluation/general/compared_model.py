"""The two models that are compared."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BASE, TRAINED = "base", "trained"
"""Names of the models: the backbone as it came, and what training made of it."""


@dataclass(frozen=True)
class ComparedModel:
    """A language model to measure.

    Attributes:
        model: Its weights, on their device; adapters may live inside.
        active: A context in which the weights are this side's (adapters on or off).
    """

    model: "PreTrainedModel"
    active: Callable[[], AbstractContextManager[None]] = nullcontext
