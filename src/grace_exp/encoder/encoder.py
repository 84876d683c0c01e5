"""The public encoder: a trained (or any instruct) model as sentence-transformers users know one."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from grace_exp.config.backbone import PoolingConfig
from grace_exp.config.hardware import HardwareConfig
from grace_exp.config.prompt import PromptConfig
from grace_exp.data.batch import Role
from grace_exp.data.prompts import PromptBuilder
from grace_exp.encoder.adaptive_encoding import embed_adaptively
from grace_exp.encoder.adaptive_rule import AdaptiveRule, required_rule
from grace_exp.encoder.cache import RationaleCache
from grace_exp.encoder.center import Center
from grace_exp.encoder.corpus import embed_corpus
from grace_exp.encoder.encode_call import checked_call
from grace_exp.encoder.engines import EngineMaker
from grace_exp.encoder.fingerprint import fingerprint
from grace_exp.encoder.instructions import Instructions
from grace_exp.encoder.load_encoder import load_encoder
from grace_exp.encoder.model_cache import ModelCache, computed_by
from grace_exp.encoder.modes import Mode
from grace_exp.encoder.progress_bar import progress_bar
from grace_exp.encoder.vectors import cosine_matrix, cosine_pairs, finished
from grace_exp.policy.load_backbone import Backbone
from grace_exp.policy.policy import Policy
from grace_exp.rollout.protocol import RolloutEngine

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from grace_exp.encoder.explanation import Explanation

_log = logging.getLogger(__name__)

Embeddings = NDArray[np.float32] | Tensor | list[Tensor]


class GraceEncoder:
    """Embeds texts: the model writes a rationale for each, and the hidden states over both are pooled.

    Forward and pooling are those of training (`Policy`). Equal texts are computed once, and the cache gives what was
    computed before. Under `torch.distributed` every process calls `encode` with the same texts. Each computes its
    share, and all get the whole result.

    Attributes:
        name: What the model was loaded from.
        mode: Which texts get rationales unless a call says otherwise: as the model was trained.
        prompts: Instructions by name for `prompt_name`; more can be added. The roles `query` and `document` use the
            instructions of their names.
        truncate_dim: Number of dimensions that are kept, unless a call says otherwise; None: all.
        rule: Rule of `mode="adaptive"`; None: there is none.
        center: Mean that is removed from every embedding before it is shortened or normalised; None: none is.
        template_kwargs: Variables of the chat template.
    """

    def __init__(
        self,
        backbone: "Backbone",
        *,
        policy: Policy,
        engine: RolloutEngine,
        prompt: PromptConfig,
        max_tokens: int,
        mode: Mode = "rationale",
        template_kwargs: Mapping[str, Any] | None = None,
        cache: RationaleCache | None = None,
        name: str = "grace",
        truncate_dim: int | None = None,
        rule: AdaptiveRule | None = None,
        center: Center | None = None,
    ) -> None:
        """Put an encoder around a loaded model; `from_pretrained` loads one.

        Args:
            backbone: Model and tokenizer.
            policy: The same model on its device, with its pooling and token budgets.
            engine: Writes the rationales with the model's present weights.
            prompt: What the model is asked.
            max_tokens: Rationale budget in tokens, unless a call says otherwise.
            mode: See the class.
            template_kwargs: Variables of the chat template.
            cache: Where rationales and embeddings are kept; None: nowhere.
            name: For tables.
            truncate_dim: See the class.
            rule: See the class.
            center: See the class.
        """
        self.backbone = backbone
        self.policy = policy
        self.engine = engine
        self.prompt = prompt
        self.max_tokens = max_tokens
        self.mode: Mode = mode
        self.cache = cache
        self.name = name
        self.truncate_dim = truncate_dim
        self.rule = rule
        self.center = center
        self.template_kwargs = dict(template_kwargs or {})
        self._instructions = Instructions(backbone.tokenizer, prompt, self.template_kwargs)
        self.prompts = self._instructions.prompts
        self._rationale_ids: list[NDArray[np.int32]] = []

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_name: str | Path,
        *,
        adapter: str | Path | None = None,
        engine: str | EngineMaker = "transformers",
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        cache: RationaleCache | str | Path | bool = True,
        prompt: PromptConfig | str | None = None,
        pooling: PoolingConfig | None = None,
        max_tokens: int | None = None,
        hardware: HardwareConfig | None = None,
        engine_overrides: Sequence[str] = (),
        revision: str | None = None,
        truncate_dim: int | None = None,
    ) -> "GraceEncoder":
        """Load a model with the settings that it was trained with. If it has none, the paper's are used.

        Args:
            path_or_hub_name: A run folder, one of its exports, a transformers or peft folder, a choice of `backbone=`
                (such as `smollm2`), or a hub name.
            adapter: A peft adapter folder to fold into it.
            engine: The engine that writes rationales, as in `rollout=`, or a function that makes one from the loaded
                model and the lengths of the longest prompt and rationale.
            device: Of the model; None: the GPU if there is one.
            dtype: Of the weights; None: float32 on the CPU, bfloat16 on a GPU.
            cache: Where rationales and embeddings are kept: a cache, a folder, True for the usual place
                (`$GRACE_EXP_CACHE` or `~/.cache/grace-exp`), False for nowhere.
            prompt: Replaces the model's own: all of it, or the system prompt as text.
            pooling: Replaces the model's own.
            max_tokens: Rationale budget instead of the model's own.
            hardware: Token budgets of the forward; None: those for the device.
            engine_overrides: Settings of the engine as on the command line, such as `rollout.batch_tokens=16384` or
                `rollout.vllm.server.url=http://10.0.0.2:8000`.
            revision: Hub commit, tag or branch.
            truncate_dim: How many of the first dimensions of every embedding to keep.

        Raises:
            MissingResourceError: The model, or what the engine needs, is missing.
            ConfigError: The settings do not fit the model, or there is no such engine.
        """
        return load_encoder(
            cls,
            str(path_or_hub_name),
            adapter=None if adapter is None else str(adapter),
            engine=engine,
            device=device,
            dtype=dtype,
            cache=cache,
            prompt=prompt,
            pooling=pooling,
            max_tokens=max_tokens,
            hardware=hardware,
            engine_overrides=engine_overrides,
            revision=revision,
            truncate_dim=truncate_dim,
        )

    def encode(
        self,
        texts: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | Callable[[int], None] | None = None,
        *,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        mode: Mode | None = None,
        role: Role | str | None = None,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        seed: int = 0,
        samples: int = 1,
        rationales: Sequence[str | Sequence[int]] | None = None,
    ) -> Embeddings:
        """Embed texts. Afterwards `rationales` holds what was written.

        Args:
            texts: One text or several. An empty text gives the embedding of the bare prompt.
            prompt_name: Name of an instruction in `prompts`; `query`, `document` and `passage` also name the role.
            prompt: Instruction of this call. It follows the system prompt and is not pooled.
            batch_size: Texts of a batch, halved where memory runs out. With a cache, the same call continues after an
                interruption and has lost one batch. Engines that batch by themselves (vLLM) want some hundreds.
            show_progress_bar: None: if this module logs at level INFO. A function gets the number of texts that this
                process has done since its last call.
            convert_to_numpy: False: return a list of tensors.
            convert_to_tensor: Return one tensor on the model's device.
            normalize_embeddings: Bring every embedding to length 1, after `truncate_dim`.
            truncate_dim: How many of the first dimensions to keep.
            mode: Which texts get rationales: all (`rationale`), none (`prompt_only`), one side (`query_only`,
                `document_only`), or those that the model's rule chooses (`adaptive`). None: as the model was trained.
            role: `query` or `document`. It decides instruction, sampling seed, and the side in one-sided modes. None:
                as `prompt_name` says, otherwise `query`.
            max_tokens: Rationale budget in tokens; None: the model's own; 0: no rationales.
            temperature: Sampling temperature; 0: greedy.
            seed: Sampling seed. A text's rationale depends on seed, role and text, not on its neighbours.
            samples: Rationales per text. The embedding is the mean of theirs, each brought to length 1 first.
            rationales: One per text, to be embedded with it: a text, to which the end token is added, or token ids
                (`rationale_ids` of an earlier call), which are used unchanged. None is written then.

        Returns:
            float32 [n, hidden], or [hidden] for one text.

        Raises:
            ConfigError: There is no such prompt, role or mode, settings contradict each other, or the model has no
                rule for the mode `adaptive`.
            DataError: Something is not a text, or the number of given rationales is not that of the texts.
            torch.OutOfMemoryError: A single text does not fit.
        """
        call = checked_call(
            self,
            texts,
            prompt_name=prompt_name,
            batch_size=batch_size,
            truncate_dim=truncate_dim,
            mode=mode,
            role=role,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            samples=samples,
            rationales=rationales,
        )
        single, inputs = isinstance(texts, str), call.texts
        builder = self._instructions.builder(prompt, prompt_name, call.role)
        self._rationale_ids = []
        visible = _log.getEffectiveLevel() <= logging.INFO if show_progress_bar is None else show_progress_bar
        with progress_bar(len(set(inputs)), visible=visible is True) as advance:
            settings: dict[str, Any] = {
                **call.writing,
                "hidden": self.get_embedding_dimension(),
                "policy": self.policy,
                "engine": self.engine,
                "prompts": builder,
                "model_cache": self.model_cache(self.cache) if inputs else None,
                "advance": visible if callable(visible) else advance,
            }
            if call.mode == "adaptive" and call.writes:
                rule = required_rule(self.rule, self.name, settings["hidden"])
                corpus = embed_adaptively(inputs, call.role, call.region, rule, **settings)
            else:
                corpus = embed_corpus(inputs, call.role, call.region, rationales=call.rationales, **settings)
        self._rationale_ids = corpus.rationale_ids
        whole = corpus.vectors
        if self.center is not None and inputs:
            whole = self.center.removed(whole, corpus.written(), self.name)
        found = finished(whole, call.truncate_dim, normalize_embeddings)
        if convert_to_tensor or not convert_to_numpy:
            tensor = torch.from_numpy(found[0] if single else found).to(self.device)
            return tensor if convert_to_tensor or single else list(tensor)
        return found[0] if single else found

    def encode_query(self, texts: str | Sequence[str], prompt_name: str | None = None, **kwargs: Any) -> Embeddings:
        """`encode` in the role `query`."""
        return self.encode(texts, prompt_name, **{"role": Role.QUERY, **kwargs})

    def encode_document(self, texts: str | Sequence[str], prompt_name: str | None = None, **kwargs: Any) -> Embeddings:
        """`encode` in the role `document`."""
        return self.encode(texts, prompt_name, **{"role": Role.POSITIVE, **kwargs})

    @property
    def rationales(self) -> list[str]:
        """Rationales of the last `encode`, [n x samples], those of a text side by side; empty without rationales.

        In the mode `adaptive`, a text without rationale has ''.
        """
        if not self._rationale_ids:
            return []
        lists = [ids.tolist() for ids in self._rationale_ids]
        texts: list[str] = self.backbone.tokenizer.batch_decode(lists, skip_special_tokens=True)
        return [text.strip() for text in texts]

    @property
    def rationale_ids(self) -> list[list[int]]:
        """Their token ids, end token included, in the same order."""
        return [ids.tolist() for ids in self._rationale_ids]

    @property
    def rationale_tokens(self) -> list[int]:
        """Their lengths in tokens, end token included, in the same order."""
        return [len(ids) for ids in self._rationale_ids]

    def explain(self, a: str, b: str, **settings: Any) -> "Explanation":
        """Explain a cosine by the words of both texts and their rationales; see `encoder.explanation.explain_pair`.

        Args:
            a: The first text, in the role `query`.
            b: The second text, in the role `document`.
            settings: `role_a`, `role_b`, `mode`, `max_tokens`, `temperature`, `seed`: as in `encode`.

        Raises:
            ConfigError: The pooling is not a mean.
        """
        from grace_exp.encoder.explanation import explain_pair

        return explain_pair(self, a, b, **settings)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosine of every pair: [n, hidden] and [m, hidden] to [n, m]; single embeddings count as n = 1."""
        return cosine_matrix(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosine of corresponding embeddings: [n, hidden] twice to [n]."""
        return cosine_pairs(embeddings1, embeddings2)

    def prompt_builder(self, role: Role) -> PromptBuilder:
        """Builds the prompts of texts in a role, with the role's instruction."""
        return self._instructions.builder(None, None, role)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.policy.model.device

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.backbone.tokenizer

    @property
    def max_seq_length(self) -> int:
        """Token limit of a whole prompt; the text is cut to fit."""
        return self.prompt.max_tokens

    def get_embedding_dimension(self) -> int:
        """Length of an embedding before `truncate_dim`."""
        return int(self.policy.causal_lm.config.get_text_config().hidden_size)

    get_sentence_embedding_dimension = get_embedding_dimension

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the weights, 32 hex digits; taken once, and again after `weights_changed`."""
        return fingerprint(self.policy.model)

    def weights_changed(self) -> None:
        """After training on: the engine takes the weights over, and what was kept is no longer this model's."""
        self.engine.sync(self.policy.model)
        self.__dict__.pop("fingerprint", None)

    def as_sentence_transformer(self) -> "SentenceTransformer":
        """Return this encoder as a `SentenceTransformer`, which needs no `trust_remote_code`.

        `encode`, `encode_query`, `encode_document`, evaluators, miners and `encode_multi_process` work. Its `prompts`
        are those of the encoder. It cannot be trained, because there is no gradient.
        """
        from grace_exp.encoder.sentence_module import sentence_transformer

        return sentence_transformer(self)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that `from_pretrained` and sentence-transformers load."""
        from grace_exp.encoder.pretrained_folder import save_folder

        save_folder(self, folder)

    def push_to_hub(self, repo_id: str, *, private: bool = True, token: str | None = None) -> str:
        """Upload the model as a repository of a hub and return its address; see `encoder.hub_upload.push`."""
        from grace_exp.encoder.hub_upload import push

        return push(self, repo_id, private=private, token=token)

    def close(self) -> None:
        """Give back the engine and close the cache."""
        self.engine.close()
        if self.cache is not None:
            self.cache.close()

    def model_cache(self, cache: RationaleCache | None) -> ModelCache | None:
        """Return this model's part of a cache, for its engine and precision; None without a cache."""
        if cache is None:
            return None
        return ModelCache(cache, f"{self.fingerprint} {self.computed_with()}", self.policy.pooling)

    def computed_with(self) -> str:
        """Return what decides rationales and embeddings, beside weights, prompts, sampling and pooling.

        That is the engine and its number type, end tokens, device, attention and autocast. Token budgets, threads and
        one pass in float32 change no more than last bits.
        """
        return computed_by(self.backbone, self.policy, self.engine)
