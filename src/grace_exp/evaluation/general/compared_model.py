"""The two models that are compared."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BASE, TRAINED = "base", "trained"
"""Names of the models: the original backbone, and the trained one."""


@dataclass(frozen=True)
class ComparedModel:
    """A language model to measure.

    Attributes:
        model: The model with its weights on their device; it may contain adapters.
        active: A context in which the weights are those of this model (adapters on or off).
    """

    model: "PreTrainedModel"
    active: Callable[[], AbstractContextManager[None]] = nullcontext
