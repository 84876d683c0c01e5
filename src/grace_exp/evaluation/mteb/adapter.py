"""GRACE encoders and sentence-transformers models as MTEB encoders (`mteb.models.EncoderProtocol`)."""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from mteb.models.abs_encoder import AbsEncoder, get_prompt_name
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.types import PromptType
from numpy.typing import NDArray

from grace_exp.encoder.center import pooling_of
from grace_exp.encoder.encoder import GraceEncoder

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.types import BatchedInput
    from sentence_transformers import SentenceTransformer
    from torch.utils.data import DataLoader


@dataclass
class EncodingCost:
    """The cost of a task's texts.

    Attributes:
        texts: Number of distinct texts of every call.
        tokens: Tokens of their rationales, also of those from the cache.
        seconds: Time in the model and the cache.
    """

    texts: int = 0
    tokens: int = 0
    seconds: float = 0.0


class MtebEncoder(AbsEncoder):
    """Passes MTEB's texts to a model with the prompt of the task, and compares embeddings by cosine.

    The prompt is the most specific of these names in the model's `prompts`: task and side (`ArguAna-query`), task,
    category and side (`Retrieval-query`), category, side (`query`, `document`).

    MTEB reuses results of the same model name and revision. So the revision is a digest of everything that decides an
    embedding: weights, prompts, pooling, token limit, sampling, engine and precision.
    """

    mteb_model_meta: ModelMeta

    def __init__(
        self, model: "GraceEncoder | SentenceTransformer", *, name: str, revision: str, settings: Mapping[str, Any]
    ) -> None:
        """Use `of_grace` or `of_sentence_transformer` instead."""
        self.model = model
        self.mteb_model_meta = ModelMeta.create_empty(
            {"name": name, "revision": revision, "similarity_fn_name": ScoringFunction.COSINE, "modalities": ["text"]}
        )
        self._settings = dict(settings)
        self.cost = EncodingCost()

    @classmethod
    def of_grace(cls, encoder: GraceEncoder, **settings: Any) -> "MtebEncoder":
        """Wrap a GRACE encoder. Under `torch.distributed` it shares the texts among the processes.

        Args:
            encoder: The encoder with its prompts and cache.
            settings: Arguments of every call of its `encode`: mode, max_tokens, temperature, seed, samples,
                truncate_dim.
        """
        mode = settings.get("mode") or encoder.mode
        decides = {
            "settings": settings,
            "max_tokens": encoder.max_tokens,
            "mode": encoder.mode,
            "prompt": asdict(encoder.prompt),
            "prompts": encoder.prompts,
            "template": encoder.tokenizer.chat_template,
            "template_kwargs": encoder.template_kwargs,
            "pooling": pooling_of(encoder.policy.pooling, encoder.center),
            "truncate_dim": encoder.truncate_dim,
            **({"rule": asdict(encoder.rule)} if encoder.rule is not None and mode == "adaptive" else {}),
            "computed_with": encoder.computed_with(),
        }
        digest = hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()
        name = f"grace-exp/{encoder.name.rstrip('/').rpartition('/')[2]}"
        return cls(encoder, name=name, revision=f"{encoder.fingerprint[:16]}-{digest[:16]}", settings=settings)

    @classmethod
    def of_sentence_transformer(cls, model: "SentenceTransformer", *, name: str, revision: str) -> "MtebEncoder":
        """Wrap a model of sentence-transformers.

        Args:
            model: The model.
            name: The model's name, `owner/model`.
            revision: Revision of its weights; the cache of results treats another revision as another model.
        """
        return cls(model, name=name, revision=revision, settings={})

    def encode(
        self,
        inputs: "DataLoader[BatchedInput]",
        *,
        task_metadata: "TaskMetadata",
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **kwargs: Any,
    ) -> NDArray[np.float32]:
        """Embed the texts of a task, float32 [texts, hidden].

        Args:
            inputs: Batches with a column `text` (of retrieval documents: title and text).
            task_metadata: Name and category choose the prompt.
            hf_split: Not used.
            hf_subset: Not used.
            prompt_type: Whether they are queries or documents; None where a task has no sides.
            kwargs: Only `batch_size` and `show_progress_bar` are used.
        """
        texts = [text for batch in inputs for text in batch["text"]]
        settings = dict(self._settings)
        if isinstance(self.model, GraceEncoder):
            settings["role"] = None if prompt_type is None else prompt_type.value
        distinct = {text: row for row, text in enumerate(dict.fromkeys(texts))}  # tasks of pairs repeat texts
        start = time.monotonic()
        vectors = self.model.encode(
            list(distinct),
            prompt_name=get_prompt_name(self.model.prompts, task_metadata, prompt_type),
            batch_size=kwargs.get("batch_size", 32),
            show_progress_bar=kwargs.get("show_progress_bar", False),
            **settings,
        )
        self.cost.seconds += time.monotonic() - start
        self.cost.texts += len(distinct)
        if isinstance(self.model, GraceEncoder):
            self.cost.tokens += sum(self.model.rationale_tokens)
        return np.asarray(vectors, dtype=np.float32)[[distinct[text] for text in texts]]
