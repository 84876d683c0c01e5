"""What is trained: GRACE, or a method it is compared with."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from grace_exp.config.base import STRICT

_INFONCE = ("contrastive", "simcse", "contrastive_on_rationales")


@dataclass(config=STRICT, frozen=True, kw_only=True)
class MethodConfig:
    """The training method; data, backbone, prompts and pooling do not depend on it."""

    name: Literal["grace", "contrastive", "simcse", "contrastive_on_rationales", "rejection_sft"] = "grace"
    """grace: policy gradient on rationales (paper). contrastive: InfoNCE on prompt-only embeddings. simcse: the same,
    with dropout as the only difference between a text and its positive. contrastive_on_rationales: InfoNCE on texts
    with rationales of the untrained model. rejection_sft: cross-entropy on the rationale with the best reward of each
    group.
    """
    temperature: Annotated[float, Field(gt=0)] | None = None
    """Divides the cosines of InfoNCE; null for methods without InfoNCE."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Attention dropout in training, which makes the two views of simcse differ; null for other methods."""

    @property
    def is_infonce(self) -> bool:
        """Whether the loss is InfoNCE on embeddings with gradient; such a method has no reward."""
        return self.name in _INFONCE

    @property
    def prompt_only(self) -> bool:
        """Whether the trained embedding is that of a text without a rationale."""
        return self.name in ("contrastive", "simcse")

    @model_validator(mode="after")
    def _has_what_it_reads(self) -> Self:
        if self.is_infonce != (self.temperature is not None):
            raise ValueError(
                f"temperature={self.temperature} with name={self.name!r}: give it for {', '.join(_INFONCE)}, and null "
                "for the others"
            )
        if (self.name == "simcse") != (self.dropout is not None):
            raise ValueError(
                f"dropout={self.dropout} with name={self.name!r}: give it for simcse, and null for the others"
            )
        return self
