"""Embed texts with the present policy: write a rationale, and pool as in training.

The hidden states are those of decoding (`policy.one_pass`) or, where these are missing, those of training's forward.
Training's held-out sets, the encoder and the benchmarks all use `embed_texts`.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from grace_exp.data.batch import Role
from grace_exp.data.prompts import PromptBuilder
from grace_exp.encoder.model_cache import ModelCache, Work
from grace_exp.policy.packing import Region, TextSequence
from grace_exp.policy.policy import Policy
from grace_exp.policy.pooled_states import PooledStates
from grace_exp.reward.inputs import EmbeddingError
from grace_exp.rollout.protocol import Completion, Request, RolloutEngine, derive_seed

_log = logging.getLogger(__name__)

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Embedded:
    """Texts with their embeddings and rationales.

    Attributes:
        embeddings: Embeddings by pooling region, float32 [texts, hidden]. The region `text` does not attend to the
            rationale, so it is the prompt-only embedding.
        completions: The rationales, [texts x samples], those of a text next to each other; empty if none were asked
            for.
    """

    embeddings: dict[Region, Vectors]
    completions: list[Completion]


def embed_texts(
    texts: Sequence[str],
    role: Role,
    *,
    policy: Policy,
    engine: RolloutEngine,
    prompts: PromptBuilder,
    max_tokens: int,
    temperature: float,
    seed: int,
    regions: Sequence[Region],
    samples: int = 1,
    rationales: Sequence[tuple[int, ...]] | None = None,
    batch_size: int | None = None,
    model_cache: ModelCache | None = None,
    advance: Callable[[int], None] | None = None,
) -> Embedded:
    """Embed texts; equal texts are computed once, by one process of the group.

    Args:
        texts: The texts, at least one.
        role: Role of the texts; it chooses the prompt's instruction.
        policy: The model.
        engine: Engine with the policy's present weights, which writes the rationales.
        prompts: Builds the prompts.
        max_tokens: Token limit of a rationale; 0: no rationale, only the prompt.
        temperature: Sampling temperature; 0 is greedy.
        seed: Seed of sampling; a text's rationale depends only on it, the role and the text.
        regions: Pooling regions to return; without rationales only `text` and `text_and_rationale` exist.
        samples: Rationales per text. The embedding of several is the mean of theirs, each scaled to length 1 first.
        rationales: Token ids of one rationale per text, used instead of writing any; `max_tokens` is then 0.
        batch_size: Texts in one batch, halved if memory runs out; None: all at once, and the engine sleeps after
            writing.
        model_cache: Cache of earlier results; new ones are stored after each batch.
        advance: Called with the number of further texts that this process has done.

    Raises:
        torch.OutOfMemoryError: A single text does not fit into memory.
    """
    nothing: list[tuple[int, ...] | None] = [None] * len(texts)
    pairs = list(zip(texts, rationales or nothing, strict=True))
    everything = list(dict.fromkeys(pairs))
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    distinct = everything[rank::world] or everything[:1]  # a process without texts repeats one: all must take part
    written = 1 if rationales is not None else samples if max_tokens else 0
    works = works_of(
        [text for text, _ in distinct],
        role,
        prompts,
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        samples=samples,
    )
    works = [replace(work, given=given) for work, (_, given) in zip(works, distinct, strict=True)]
    share = _Share(works, policy, engine, regions, model_cache, advance or (lambda done: None)).embed(batch_size)
    parts = [share]
    if world > 1:
        parts = [share] * world
        dist.all_gather_object(parts, share)
    place = {pair: divmod(number, world) for number, pair in enumerate(everything)}  # (row, process)
    order = [place[pair] for pair in pairs]
    return Embedded(
        {region: np.stack([parts[process].embeddings[region][row] for row, process in order]) for region in regions},
        [parts[process].completions[row * written + sample] for row, process in order for sample in range(written)],
    )


def works_of(
    texts: Sequence[str],
    role: Role,
    prompts: PromptBuilder,
    *,
    max_tokens: int,
    temperature: float,
    seed: int,
    samples: int,
) -> list[Work]:
    """Return what is written and embedded for each text; the arguments are those of `embed_texts`."""
    written = samples if max_tokens else 0
    return [
        Work(
            prompt,
            Request(prompt.token_ids, written, max_tokens, temperature, derive_seed(seed, "evaluation", role, text)),
        )
        for prompt, text in zip(prompts.many((role, text) for text in texts), texts, strict=True)
    ]


class _Share:
    """This process's texts: each without rationale and embedding, with the rationale, or with both."""

    def __init__(
        self,
        works: list[Work],
        policy: Policy,
        engine: RolloutEngine,
        regions: Sequence[Region],
        model_cache: ModelCache | None,
        advance: Callable[[int], None],
    ) -> None:
        self._works = works
        self._policy = policy
        self._engine = engine
        self._regions = regions
        self._model_cache = model_cache
        self._advance = advance
        self._completions: list[list[Completion] | None] = [None] * len(works)
        self._vectors: list[dict[Region, Vectors] | None] = [None] * len(works)
        self._pooled: dict[int, list[PooledStates | None]] = {}
        """Pooled states of rationales that are written but not yet embedded, by row."""
        if model_cache is not None:
            self._completions = model_cache.rationales(works)
            self._vectors = model_cache.embeddings(works, regions)
        for row, work in enumerate(works):
            if work.given is not None:
                self._completions[row] = [Completion(work.given, (0.0,) * len(work.given), "stop")]

    def embed(self, batch_size: int | None) -> Embedded:
        """Compute what is missing, `batch_size` texts at a time."""
        missing = [
            row for row in range(len(self._works)) if self._completions[row] is None or self._vectors[row] is None
        ]
        self._advance(len(self._works) - len(missing))
        if batch_size is not None and batch_size < len(missing):
            # Similar lengths together, so that there is little padding; longest first, so that memory runs out early if
            # it does.
            missing.sort(key=lambda row: -len(self._works[row].prompt.token_ids))
        size, start = batch_size or max(1, len(missing)), 0
        while start < len(missing):
            batch = missing[start : start + size]
            if self._fits(batch, last=batch_size is None and start + size >= len(missing)):
                start += len(batch)
                self._advance(len(batch))
            else:
                size = (len(batch) + 1) // 2
                _log.warning("out of memory with %d texts at a time: continuing with %d", len(batch), size)
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
        vectors = [found for found in self._vectors if found is not None]
        completions = [found for found in self._completions if found is not None]
        return Embedded(
            {region: np.stack([found[region] for found in vectors]) for region in self._regions},
            [completion for found in completions for completion in found],
        )

    def _fits(self, batch: list[int], *, last: bool) -> bool:
        """Write and embed a batch; return False if memory ran out (rationales that were written are kept).

        Args:
            batch: Rows of the batch.
            last: Whether nothing more is written, so that the forwards may use the engine's memory.
        """
        try:
            self._write([row for row in batch if self._completions[row] is None])
            if last:
                self._engine.sleep()
            self._compute(batch)
        except torch.OutOfMemoryError:
            if len(batch) == 1 or self._policy.sharded:  # sharded processes must compute the same number of batches
                raise
            return False
        return True

    def _write(self, batch: list[int]) -> None:
        if not batch:
            return
        requests = [self._works[row].request for row in batch]
        answers: list[list[Completion]] = [[] for _ in batch]
        if any(request.n for request in requests):
            one_pass = self._policy.one_pass
            if one_pass.wanted(self._engine):
                requests = [
                    replace(request, pooling=one_pass.pooling(self._works[row].prompt))
                    for row, request in zip(batch, requests, strict=True)
                ]
            answers = self._engine.generate(requests)
        if self._model_cache is not None:
            self._model_cache.keep_rationales([self._works[row] for row in batch], answers)
        for row, answer in zip(batch, answers, strict=True):
            self._completions[row] = [replace(completion, pooled=None) for completion in answer]
            self._pooled[row] = [completion.pooled for completion in answer]

    def _compute(self, batch: list[int]) -> None:
        sequences: list[TextSequence] = []
        pooled: list[PooledStates | None] = []
        for row in batch:
            work, completions = self._works[row], self._completions[row]
            temperature = work.request.temperature
            sequences += [
                TextSequence(work.prompt, completion.token_ids, temperature) for completion in completions or ()
            ] or [TextSequence(work.prompt)]
            pooled += self._pooled.pop(row, []) or [None] * (len(sequences) - len(pooled))
        embedded = self._policy.one_pass.embed(sequences, pooled, self._regions)
        arrays = {region: values.cpu().numpy() for region, values in embedded.items()}
        self._check(arrays, batch)
        found = {region: _averaged(values, len(batch)) for region, values in arrays.items()}
        if self._model_cache is not None:
            self._model_cache.keep_embeddings([self._works[row] for row in batch], found)
        for number, row in enumerate(batch):
            self._vectors[row] = {region: vectors[number] for region, vectors in found.items()}

    def _check(self, arrays: dict[Region, Vectors], batch: list[int]) -> None:
        """Refuse vectors that are zero or not finite, as training does, before any of them is stored."""
        for values in arrays.values():
            lengths = np.linalg.norm(values.astype(np.float64), axis=1)
            bad = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))
            if len(bad):
                work = self._works[batch[int(bad[0]) * len(batch) // len(values)]]
                problem = "is zero" if lengths[bad[0]] == 0 else "holds nan or inf"
                raise EmbeddingError(
                    f"the embedding of a text of {len(work.prompt.token_ids)} prompt tokens {problem} ({len(bad)} of "
                    f"{len(values)} such vectors are bad): the model's weights are broken, or its activations do not "
                    "fit into its number type; check the weights, and hardware.precision"
                )


def _averaged(vectors: Vectors, texts: int) -> Vectors:
    """Return one embedding per text [texts, hidden] from those of its rationales [texts x samples, hidden]."""
    if len(vectors) == texts:
        return vectors
    wide = vectors.astype(np.float64)
    unit = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    mean: Vectors = unit.reshape(texts, -1, vectors.shape[1]).mean(axis=1).astype(np.float32)
    return mean
