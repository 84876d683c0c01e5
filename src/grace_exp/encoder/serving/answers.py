"""Compute a server's answers: from the cache alone, or with the model."""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from grace_exp.config.job import EncodeConfig
from grace_exp.data.batch import Role
from grace_exp.encoder.adaptive_rule import required_rule
from grace_exp.encoder.cache import RationaleCache
from grace_exp.encoder.center import check_single
from grace_exp.encoder.embedding import works_of
from grace_exp.encoder.encoder import GraceEncoder
from grace_exp.encoder.instructions import Instructions
from grace_exp.encoder.model_cache import ModelCache
from grace_exp.encoder.modes import writes
from grace_exp.encoder.vectors import finished
from grace_exp.policy.packing import Region


@dataclass(frozen=True)
class Kind:
    """The properties that all texts of a batch share.

    Attributes:
        role: Role of the texts.
        max_tokens: Token limit of a rationale.
    """

    role: Role
    max_tokens: int


@dataclass(frozen=True)
class Answer:
    """Embedded texts.

    Attributes:
        vectors: Embeddings, float32 [texts, hidden].
        rationales: Rationales by text; empty lists without rationales.
        rationale_tokens: For each text, the number of tokens of all its rationales.
    """

    vectors: NDArray[np.float32]
    rationales: list[list[str]]
    rationale_tokens: list[int]

    def __getitem__(self, rows: slice) -> "Answer":
        """Return the answers of some of the texts."""
        return Answer(self.vectors[rows], self.rationales[rows], self.rationale_tokens[rows])


class Answers:
    """An encoder with the settings of a job.

    `compute` and `close` must be called on one thread, `known` and `prompt_tokens` on another one. A connection of
    SQLite and a tokenizer each belong to one thread, so there are two of both.
    """

    def __init__(
        self,
        encoder: GraceEncoder,
        settings: EncodeConfig,
        seed: int = 0,
        precision: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """Serve an encoder.

        Args:
            encoder: The model.
            settings: Mode, temperature, samples, batch size, normalisation and dimensions.
            seed: Seed of sampling.
            precision: Context that is entered around the model's work, in its thread.
        """
        check_single(encoder.center, settings.samples)
        self.encoder = encoder
        self.settings = settings
        self._seed = seed
        self._precision = precision
        self._tokenizer = copy.deepcopy(encoder.tokenizer)
        self._instructions = Instructions(self._tokenizer, encoder.prompt, encoder.template_kwargs)
        cache = encoder.cache
        self._cache = None if cache is None else RationaleCache(cache.path.parent, size_limit=cache.size_limit)

    def compute(self, texts: Sequence[str], kind: Kind) -> Answer:
        """Write and embed; results in the cache are not computed again."""
        settings = self.settings
        with self._precision():
            vectors = self.encoder.encode(
                list(texts),
                batch_size=settings.batch_size,
                show_progress_bar=False,
                normalize_embeddings=settings.normalize,
                truncate_dim=settings.truncate_dim,
                mode=settings.mode,
                role=kind.role,
                max_tokens=kind.max_tokens,
                temperature=settings.temperature,
                seed=self._seed,
                samples=settings.samples,
            )
        flat, tokens = self.encoder.rationales, self.encoder.rationale_tokens
        return _answer(np.asarray(vectors, dtype=np.float32), flat, tokens)

    def known(self, texts: Sequence[str], kind: Kind) -> Answer | None:
        """Return the same from the cache; None if it lacks a text."""
        settings, encoder = self.settings, self.encoder
        if self._cache is None:
            return None
        mode = settings.mode or encoder.mode
        budget = kind.max_tokens if writes(mode, kind.role) else 0
        with self._precision():
            cache = encoder.model_cache(self._cache)
        assert cache is not None
        if mode == "adaptive" and budget:
            found = self._chosen(texts, kind.role, budget, cache)
        else:
            found = self._stored(texts, kind.role, budget, cache)
        if found is None:
            return None
        whole = found.vectors
        if encoder.center is not None:
            whole = encoder.center.removed(whole, np.array(found.rationale_tokens) > 0, encoder.name)
        vectors = finished(whole, settings.truncate_dim or encoder.truncate_dim, settings.normalize)
        return replace(found, vectors=vectors)

    def _stored(self, texts: Sequence[str], role: Role, budget: int, cache: ModelCache) -> Answer | None:
        """Return embeddings with rationales of this token limit (0: without); None if the cache lacks one."""
        region: Region = self.encoder.policy.pooling.region if budget else "text"
        works = works_of(
            texts,
            role,
            self._instructions.builder(None, None, role),
            max_tokens=budget,
            temperature=self.settings.temperature,
            seed=self._seed,
            samples=self.settings.samples,
        )
        written = cache.rationales(works)
        if any(completions is None for completions in written):
            return None
        embedded = cache.embeddings(works, (region,))
        found = [vectors[region] for vectors in embedded if vectors is not None]
        if len(found) < len(works):
            return None
        flat = [completion for completions in written for completion in completions or ()]
        decoded = self._tokenizer.batch_decode(
            [list(completion.token_ids) for completion in flat], skip_special_tokens=True
        )
        return _answer(
            np.stack(found), [text.strip() for text in decoded], [len(completion.token_ids) for completion in flat]
        )

    def _chosen(self, texts: Sequence[str], role: Role, budget: int, cache: ModelCache) -> Answer | None:
        """Return the same, with rationales for the texts that the model's rule chooses."""
        plain = self._stored(texts, role, 0, cache)
        if plain is None:
            return None
        rule = required_rule(self.encoder.rule, self.encoder.name, plain.vectors.shape[1])
        chosen = np.flatnonzero(rule.writes(plain.vectors, role))
        written = self._stored([texts[row] for row in chosen], role, budget, cache) if len(chosen) else None
        if written is None:
            return None if len(chosen) else plain
        vectors, rationales, tokens = plain.vectors.copy(), list(plain.rationales), list(plain.rationale_tokens)
        vectors[chosen] = written.vectors
        for place, row in enumerate(chosen):
            rationales[row], tokens[row] = written.rationales[place], written.rationale_tokens[place]
        return Answer(vectors, rationales, tokens)

    def prompt_tokens(self, texts: Sequence[str], role: Role) -> int:
        """Return the number of tokens of the texts' prompts, with chat template and system prompt."""
        prompts = self._instructions.builder(None, None, role).many((role, text) for text in texts)
        return sum(len(prompt.token_ids) for prompt in prompts)

    @property
    def dimensions(self) -> int:
        """The length of an embedding."""
        whole = self.encoder.get_embedding_dimension()
        return min(whole, self.settings.truncate_dim or self.encoder.truncate_dim or whole)

    def shortened(self, answer: Answer, dimensions: int) -> Answer:
        """Return only the first dimensions, scaled to length 1 again if the settings say so."""
        return replace(answer, vectors=finished(answer.vectors, dimensions, self.settings.normalize))

    def close(self) -> None:
        """Close the engine."""
        self.encoder.close()


def _answer(vectors: NDArray[np.float32], flat: list[str], tokens: list[int]) -> Answer:
    texts = len(vectors)
    samples = len(flat) // texts if texts else 0
    rows = [slice(row * samples, (row + 1) * samples) for row in range(texts)]
    counts = [sum(tokens[row]) for row in rows]
    # A text without rationale in the mode `adaptive` has empty ones; they are left out here.
    return Answer(vectors, [flat[row] if count else [] for row, count in zip(rows, counts, strict=True)], counts)
