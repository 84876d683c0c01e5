"""The public encoder: a trained (or any instruct) model as sentence-transformers users know one."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
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
from grace_exp.encoder.center import Center, check_single
from grace_exp.encoder.corpus import embed_corpus
from grace_exp.encoder.engines import EngineMaker, engine_maker
from grace_exp.encoder.fingerprint import fingerprint
from grace_exp.encoder.given_rationales import given_ids
from grace_exp.encoder.instructions import Instructions
from grace_exp.encoder.model_cache import ModelCache, computed_with
from grace_exp.encoder.modes import Mode, check_call, listed, longest_of, role_of, writes
from grace_exp.encoder.pretrained import CACHE_FOLDER, default_cache_dir, load, resolve
from grace_exp.encoder.progress_bar import progress_bar
from grace_exp.encoder.vectors import cosine_matrix, cosine_pairs, finished
from grace_exp.policy.grouped_attention import attention_name
from grace_exp.policy.load_backbone import Backbone
from grace_exp.policy.model_checks import check_attention, check_positions
from grace_exp.policy.packing import Region
from grace_exp.policy.policy import Policy
from grace_exp.rollout.protocol import RolloutEngine

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from grace_exp.encoder.explanation import Explanation

_log = logging.getLogger(__name__)

Embeddings = NDArray[np.float32] | Tensor | list[Tensor]


class GraceEncoder:
    """Texts to embeddings: a rationale is written for each, and the hidden states over both are pooled.

    The forward and the pooling are training's (`Policy`). Equal texts are done once; what was done before comes from
    the cache. Under `torch.distributed` every process calls `encode` with the same texts, does its share, and gets all.

    Attributes:
        name: What the model was loaded from.
        mode: Who writes rationales unless a call says otherwise: as the model was trained.
        prompts: Instructions by name for `prompt_name`, free to be added to. Those of `query` and `document` are used
            for these roles without being named.
        truncate_dim: Of all embeddings, unless a call says otherwise; None: whole.
        rule: Of `mode="adaptive"`; None: there is none.
        center: Removed from every embedding, before it is shortened or brought to length 1; None: nothing is.
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
            policy: The same model, with its pooling and token budgets, on its device.
            engine: Writes the rationales with the model's present weights.
            prompt: What the model is asked.
            max_tokens: Rationale budget, unless a call says otherwise.
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
        """Load a model with the settings it was trained with, or, where none are known, the paper's.

        Args:
            path_or_hub_name: A run folder, one of its exports, a transformers or peft folder, a choice of `backbone=`
                (such as `smollm2`), or a hub name.
            adapter: A peft adapter folder to fold into it.
            engine: Who writes rationales, as `rollout=` names them, or what makes one of the loaded model and the
                lengths of the longest prompt and rationale.
            device: None: the GPU if there is one.
            dtype: Of the weights; None: float32 on the CPU, bfloat16 on a GPU.
            cache: Where rationales and embeddings are kept: a cache, a folder, True for the usual place
                (`$GRACE_EXP_CACHE` or `~/.cache/grace-exp`), False for nowhere.
            prompt: Instead of the model's own: all of it, or the system prompt as text.
            pooling: Instead of the model's own.
            max_tokens: Rationale budget instead of the model's own.
            hardware: Token budgets of the forward; None: those for the device.
            engine_overrides: Settings of the engine as on the command line, such as `rollout.batch_tokens=16384` or
                `rollout.vllm.server.url=http://10.0.0.2:8000`.
            revision: Hub commit, tag or branch.
            truncate_dim: Keep only the first dimensions of every embedding.

        Raises:
            MissingResourceError: The model, or what the engine needs, is not there.
            ConfigError: The settings do not fit the model, or there is no such engine.
        """
        found = resolve(str(path_or_hub_name), adapter=None if adapter is None else str(adapter), revision=revision)
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        weights = dtype or (torch.float32 if chosen.type == "cpu" else torch.bfloat16)
        backbone = load(found, cache_dir=default_cache_dir(), dtype=weights)
        policy = Policy(
            backbone.model,
            pooling or found.backbone.pooling,
            hardware or HardwareConfig(name="encoder", score_tokens=4096 if chosen.type == "cpu" else 16384),
            pad_token_id=backbone.pad_token_id,
        )
        policy.to(chosen).eval()
        wanted_prompt = (
            replace(found.prompt, name="own", system=prompt) if isinstance(prompt, str) else prompt or found.prompt
        )
        budget = found.max_tokens if max_tokens is None else max_tokens
        make = engine_maker(engine, engine_overrides) if isinstance(engine, str) else engine
        return cls(
            backbone,
            policy=policy,
            engine=make(backbone, wanted_prompt.max_tokens, budget),
            prompt=wanted_prompt,
            max_tokens=budget,
            mode=found.mode,
            template_kwargs=found.backbone.template_kwargs,
            cache=_cache(cache),
            name=str(path_or_hub_name),
            truncate_dim=truncate_dim,
            rule=found.rule if prompt is None and pooling is None else None,
            center=found.center if prompt is None and pooling is None else None,
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

        Interrupted (Ctrl-C, a kill, memory), the same call goes on after the last whole batch if there is a cache.

        Args:
            texts: One text or several; an empty one is embedded as the bare prompt.
            prompt_name: Name of an instruction in `prompts`; `query`, `document` and `passage` also say the role.
            prompt: An instruction of this call; it stands behind the system prompt, outside the pooled tokens.
            batch_size: Texts written to and computed at a time, halved where memory runs out; an interruption loses one
                batch. Engines that batch by themselves (vLLM) want some hundreds.
            show_progress_bar: None: if this module logs at level INFO. A function instead of a bar is told how many
                more texts this process has done.
            convert_to_numpy: False: a list of tensors.
            convert_to_tensor: One tensor on the model's device instead of an array.
            normalize_embeddings: Bring every embedding to length 1 (after `truncate_dim`).
            truncate_dim: Keep only the first dimensions.
            mode: Who writes rationales: every text (`rationale`), none (`prompt_only`), one side (`query_only`,
                `document_only`), or the texts that the model's rule chooses (`adaptive`); None: as the model was
                trained.
            role: `query` or `document`: the instruction, the stream of sampling, and the side in one-sided modes.
                None: as `prompt_name` says, otherwise `query`.
            max_tokens: Rationale budget; None: the model's own; 0: no rationales.
            temperature: 0: greedy.
            seed: Of sampling. A text's rationale depends on it, the role and the text, not on its neighbours.
            samples: Rationales a text. The embedding of several is the mean of theirs, each brought to length 1 first.
            rationales: One per text, to be embedded with it instead of writing any: texts, which get the end token
                behind them, or token ids (`rationale_ids` of an earlier call), which are taken as they are.

        Returns:
            float32 [n, hidden], or [hidden] for one text.

        Raises:
            ConfigError: No such prompt, role or mode, settings that contradict each other, or the mode is
                `adaptive` and the model has no rule for it.
            DataError: Something is no text, or there is not one of the given rationales per text.
            torch.OutOfMemoryError: A single text does not fit.
        """
        single = isinstance(texts, str)
        inputs = listed(texts)
        given = None
        if rationales is not None:
            several = samples if samples > 1 else None
            writing = {"mode": mode, "max_tokens": max_tokens, "temperature": temperature, "samples": several}
            given = given_ids(rationales, len(inputs), self.backbone, **writing)
            max_tokens = 0
        dimensions = self.truncate_dim if truncate_dim is None else truncate_dim
        mode = mode or self.mode
        budget = self.max_tokens if max_tokens is None else max_tokens
        check_call(
            inputs,
            batch_size=batch_size,
            mode=mode,
            max_tokens=budget,
            temperature=temperature,
            samples=samples,
            truncate_dim=dimensions,
        )
        check_single(self.center, samples if budget and writes(mode, role_of(role, prompt_name)) else 1)
        part = role_of(role, prompt_name)
        if not writes(mode, part):
            budget = 0
        longest = longest_of(self.prompt.max_tokens, budget if given is None else max(map(len, given), default=0))
        check_positions(self.policy.causal_lm.config, self.name, longest)
        check_attention(self.policy.causal_lm.config, self.name, longest.tokens)
        region: Region = self.policy.pooling.region if budget or given else "text"
        builder = self._instructions.builder(prompt, prompt_name, part)

        self._rationale_ids = []
        visible = _log.getEffectiveLevel() <= logging.INFO if show_progress_bar is None else show_progress_bar
        with progress_bar(len(set(inputs)), visible=visible is True) as advance:
            settings: dict[str, Any] = {
                "hidden": self.get_embedding_dimension(),
                "policy": self.policy,
                "engine": self.engine,
                "prompts": builder,
                "max_tokens": budget,
                "temperature": temperature,
                "seed": seed,
                "samples": samples,
                "batch_size": batch_size,
                "model_cache": self.model_cache(self.cache) if inputs else None,
                "advance": visible if callable(visible) else advance,
            }
            if mode == "adaptive" and budget:
                rule = required_rule(self.rule, self.name, settings["hidden"])
                corpus = embed_adaptively(inputs, part, region, rule, **settings)
            else:
                corpus = embed_corpus(inputs, part, region, rationales=given, **settings)
        self._rationale_ids = corpus.rationale_ids
        whole = corpus.vectors
        if self.center is not None and inputs:
            written = np.array([len(ids) > 0 for ids in corpus.rationale_ids] or [False] * len(inputs))
            whole = self.center.removed(whole, written, self.name)
        found = finished(whole, dimensions, normalize_embeddings)
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
        """What the last `encode` wrote: [n x samples], those of a text side by side; empty without rationales.

        In the mode `adaptive` that of a text that got none is ''.
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
        """Which words of two texts and their rationales make up the cosine of their embeddings.

        Args:
            a: The first text, in the role `query`.
            b: The second text, in the role `document`.
            settings: `role_a`, `role_b`, `mode`, `max_tokens`, `temperature`, `seed`: as in `encode`.

        Returns:
            The cosine, the contribution of every word, the strongest pairs of words, and the cosines with other
            rationales (`encoder.explanation.explain_pair`).

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
        """This encoder as a `SentenceTransformer`, for whatever takes one; it needs no `trust_remote_code`.

        `encode`, `encode_query`, `encode_document`, evaluators, miners and `encode_multi_process` work; its `prompts`
        are those of the encoder. Nothing trains: there is no gradient.
        """
        from sentence_transformers import SentenceTransformer

        from grace_exp.encoder.sentence_module import GraceModule

        prompts = {"query": "", "document": "", **self.prompts}
        return SentenceTransformer(
            modules=[GraceModule(self)],
            prompts=prompts,
            similarity_fn_name="cosine",
            truncate_dim=self.truncate_dim,
            device=str(self.device),
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that `from_pretrained` and sentence-transformers load."""
        from grace_exp.encoder.pretrained_folder import save_folder

        save_folder(self, folder)

    def push_to_hub(self, repo_id: str, *, private: bool = True, token: str | None = None) -> str:
        """Upload the model as a repository of a hub; returns its address. See `encoder.hub_upload.push`."""
        from grace_exp.encoder.hub_upload import push

        return push(self, repo_id, private=private, token=token)

    def close(self) -> None:
        """Give back the engine and close the cache."""
        self.engine.close()
        if self.cache is not None:
            self.cache.close()

    def model_cache(self, cache: RationaleCache | None) -> ModelCache | None:
        """The part of a cache that is this model's, with its engine and precision; None without a cache."""
        if cache is None:
            return None
        return ModelCache(cache, f"{self.fingerprint} {self.computed_with()}", self.policy.pooling)

    def computed_with(self) -> str:
        """What decides rationales and embeddings beside weights, prompts, sampling and pooling.

        Engine and the number type that it computes in, end tokens, device, attention, autocast. With the prompt's
        tokens, the sampling and the pooling, which `ModelCache` adds, that is all: budgets of tokens, threads and one
        pass in float32 change no more than last bits.
        """
        device = self.device.type
        cast = str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else "as loaded"
        how = computed_with(
            type(self.engine).__name__,
            getattr(self.engine, "dtype", self.policy.model.dtype),
            self.backbone.end_token_ids,
            device,
            attention_name(self.policy.causal_lm),
            cast,
        )
        return f"{how} in one pass" if self.policy.one_pass.rounds_differently(self.engine) else how


def _cache(cache: RationaleCache | str | Path | bool) -> RationaleCache | None:
    if isinstance(cache, RationaleCache):
        return cache
    if isinstance(cache, bool):
        return RationaleCache(default_cache_dir() / CACHE_FOLDER) if cache else None
    return RationaleCache(cache)
