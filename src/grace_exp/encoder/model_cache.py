"""Rationales and embeddings of one model in the cache."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from grace_exp.config.backbone import PoolingConfig
from grace_exp.data.prompts import Prompt
from grace_exp.encoder.cache import CacheError, RationaleCache
from grace_exp.policy.grouped_attention import attention_name
from grace_exp.policy.packing import Region
from grace_exp.rollout.protocol import Completion, Request, RolloutEngine

if TYPE_CHECKING:
    from grace_exp.policy.load_backbone import Backbone
    from grace_exp.policy.policy import Policy

_ENDED, _CUT = 0, 1


def computed_with(
    engine: str, engine_dtype: object, end_token_ids: Sequence[int], device: str, attention: str, precision: str
) -> str:
    """Return a part of the model's name in a `ModelCache`: what decides its results besides its weights."""
    ends = ",".join(map(str, end_token_ids))
    return f"{engine}:{engine_dtype} ends {ends} on {device} by {attention} in {precision}"


def computed_by(backbone: "Backbone", policy: "Policy", engine: RolloutEngine) -> str:
    """Return `computed_with` of loaded parts, as they compute here and now."""
    device = policy.model.device.type
    cast = str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else "as loaded"
    how = computed_with(
        type(engine).__name__,
        getattr(engine, "dtype", policy.model.dtype),
        backbone.end_token_ids,
        device,
        attention_name(policy.causal_lm),
        cast,
    )
    return f"{how} in one pass" if policy.one_pass.rounds_differently(engine) else how


@dataclass(frozen=True, slots=True)
class Work:
    """One text to embed: its prompt, and the request for its rationales (`n` of 0: none).

    Attributes:
        prompt: The text's prompt.
        request: The request for its rationales.
        given: Token ids of a given rationale; `request` then asks for none.
    """

    prompt: Prompt
    request: Request
    given: tuple[int, ...] | None = None


@dataclass(frozen=True)
class ModelCache:
    """Reads and stores the rationales and embeddings of one model in a cache.

    A rationale's key contains: weights, engine, prompt tokens, temperature, token limit, seed, and the number of the
    sample (greedy: without the last two). An embedding's key contains its rationales (for a given one its token ids),
    the pooling, and where the pooling starts.

    Attributes:
        cache: The cache.
        model: Digest of the weights and of how they are used: engine, precision.
        pooling: Pooling of the embeddings.
    """

    cache: RationaleCache
    model: str
    pooling: PoolingConfig

    def rationales(self, works: Sequence[Work]) -> list[list[Completion] | None]:
        """Return the rationales of every text; None if some of them are missing."""
        keys = [self._rationale_keys(work.request) for work in works]
        found = self.cache.get([key for rationale_keys in keys for key in rationale_keys])
        return [
            [self._completion(found[key]) for key in rationale_keys]
            if all(key in found for key in rationale_keys)
            else None
            for rationale_keys in keys
        ]

    def embeddings(
        self, works: Sequence[Work], regions: Sequence[Region]
    ) -> list[dict[Region, NDArray[np.float32]] | None]:
        """Return the embeddings [hidden] of every text by region; None if some of them are missing."""
        keys = [{region: self._embedding_key(work, region) for region in regions} for work in works]
        found = self.cache.get([key for by_region in keys for key in by_region.values()])
        return [
            {region: np.frombuffer(found[key], dtype="<f4") for region, key in by_region.items()}
            if all(key in found for key in by_region.values())
            else None
            for by_region in keys
        ]

    def keep_rationales(self, works: Sequence[Work], completions: Sequence[Sequence[Completion]]) -> None:
        """Store rationales."""
        self.cache.put(
            {
                key: _packed(completion)
                for work, written in zip(works, completions, strict=True)
                for key, completion in zip(self._rationale_keys(work.request), written, strict=True)
            }
        )

    def keep_embeddings(self, works: Sequence[Work], embeddings: Mapping[Region, NDArray[np.float32]]) -> None:
        """Store embeddings by region, [texts, hidden]."""
        self.cache.put(
            {
                self._embedding_key(work, region): vector.astype("<f4").tobytes()
                for region, vectors in embeddings.items()
                for work, vector in zip(works, vectors, strict=True)
            }
        )

    def _rationale_keys(self, request: Request) -> list[bytes]:
        greedy = request.temperature == 0
        draw = () if greedy else (request.seed,)
        start = _digest("rationale", self.model, request.max_tokens, request.temperature, *draw)
        start.update(_ids(request.prompt_ids))
        keys = []
        for sample in range(request.n):
            digest = start.copy()
            digest.update(f"{0 if greedy else sample}".encode())
            keys.append(digest.digest())
        return keys

    def _embedding_key(self, work: Work, region: Region) -> bytes:
        pooling = self.pooling
        digest = _digest("embedding", self.model, region, pooling.method, pooling.layer, work.prompt.pool_start)
        digest.update(_ids(work.prompt.token_ids))
        for key in self._rationale_keys(work.request):
            digest.update(key)
        if work.given is not None:
            digest.update(b"given" + _ids(work.given))
        return digest.digest()

    def _completion(self, value: bytes) -> Completion:
        tokens, odd = divmod(len(value) - 1, 8)
        if odd:
            raise CacheError(
                f"the rationale cache {self.cache.path} holds {len(value)} bytes that are not a rationale: delete "
                "that file; what it held is written and computed again"
            )
        return Completion(
            tuple(np.frombuffer(value, "<i4", tokens, 1).tolist()),
            tuple(np.frombuffer(value, "<f4", tokens, 1 + 4 * tokens).tolist()),
            "length" if value[0] == _CUT else "stop",
        )


def _packed(completion: Completion) -> bytes:
    ended = bytes([_CUT if completion.truncated else _ENDED])
    return ended + _ids(completion.token_ids) + np.array(completion.logprobs, "<f4").tobytes()


def _ids(token_ids: Sequence[int]) -> bytes:
    return np.array(token_ids, "<i4").tobytes()


def _digest(*parts: object) -> "hashlib.blake2b":
    return hashlib.blake2b("/".join(map(str, parts)).encode() + b"\0", digest_size=16)
