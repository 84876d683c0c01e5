import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from grace_exp.config.backbone import PoolingConfig
from grace_exp.data.prompts import Prompt
from grace_exp.encoder.cache import CacheError, RationaleCache
from grace_exp.encoder.model_cache import ModelCache, Work
from grace_exp.rollout.protocol import Completion, Request

VECTOR = np.array([[1.5, -2.25, 3e-8]], dtype=np.float32)


def work(*, prompt: tuple[int, ...] = (5, 70000, 2), pool_start: int = 1, **request: object) -> Work:
    settings = {"n": 1, "max_tokens": 8, "temperature": 1.0, "seed": 3, **request}
    return Work(Prompt(prompt, pool_start), Request(prompt, **settings))  # type: ignore[arg-type]


def completion(*tokens: int, truncated: bool = False) -> Completion:
    logprobs = tuple(float(np.float32(-0.1 * token)) for token in tokens)
    return Completion(tokens, logprobs, "length" if truncated else "stop")


@pytest.fixture
def model_cache(tmp_path: Path) -> ModelCache:
    return ModelCache(RationaleCache(tmp_path), "model", PoolingConfig())


def test_rationales_come_back_as_they_were(model_cache: ModelCache) -> None:
    works = [work(), work(prompt=(1, 2)), work(prompt=(3,), n=3)]
    written = [
        [completion(7, 150_000, 2)],
        [replace(completion(1, 2, truncated=True), logprobs=(-math.inf, 0.0))],
        [completion(4), completion(), completion(5, 6)],
    ]
    model_cache.keep_rationales(works, written)
    assert model_cache.rationales([*works, work(prompt=(9,))]) == [*written, None]


def test_embeddings_come_back_as_they_were(model_cache: ModelCache) -> None:
    model_cache.keep_embeddings([work()], {"text": VECTOR, "rationale": 2 * VECTOR})
    (found,) = model_cache.embeddings([work()], ["rationale", "text"])
    assert found is not None
    np.testing.assert_array_equal(found["text"], VECTOR[0])
    np.testing.assert_array_equal(found["rationale"], 2 * VECTOR[0])
    assert found["text"].dtype == np.float32
    assert model_cache.embeddings([work()], ["text", "text_and_rationale"]) == [None]  # not all of them


@pytest.mark.parametrize(
    "change",
    [{"prompt": (5, 70000, 3)}, {"seed": 4}, {"temperature": 0.9}, {"max_tokens": 9}],
    ids=lambda change: next(iter(change)),
)
def test_another_prompt_or_sampling_is_unknown(model_cache: ModelCache, change: dict[str, object]) -> None:
    model_cache.keep_rationales([work()], [[completion(1)]])
    model_cache.keep_embeddings([work()], {"text": VECTOR})
    other = work(**change)  # type: ignore[arg-type]
    assert model_cache.rationales([other]) == [None]
    assert model_cache.embeddings([other], ["text"]) == [None]


def test_another_model_is_unknown(model_cache: ModelCache) -> None:
    model_cache.keep_rationales([work()], [[completion(1)]])
    model_cache.keep_embeddings([work()], {"text": VECTOR})
    other = replace(model_cache, model="another")
    assert other.rationales([work()]) == [None]
    assert other.embeddings([work()], ["text"]) == [None]


@pytest.mark.parametrize("pooling", [PoolingConfig(layer=-2), PoolingConfig(method="last")], ids=["layer", "method"])
def test_another_pooling_finds_the_rationale_and_no_embedding(model_cache: ModelCache, pooling: PoolingConfig) -> None:
    model_cache.keep_rationales([work()], [[completion(1)]])
    model_cache.keep_embeddings([work()], {"text": VECTOR})
    other = replace(model_cache, pooling=pooling)
    assert other.rationales([work()]) == [[completion(1)]]
    assert other.embeddings([work()], ["text"]) == [None]
    assert model_cache.embeddings([work(pool_start=0)], ["text"]) == [None]


def test_the_seed_of_a_greedy_rationale_does_not_matter(model_cache: ModelCache) -> None:
    model_cache.keep_rationales([work(temperature=0.0, seed=1)], [[completion(1)]])
    assert model_cache.rationales([work(temperature=0.0, seed=2)]) == [[completion(1)]]


def test_the_first_of_many_samples_is_the_only_one_of_one(model_cache: ModelCache) -> None:
    model_cache.keep_rationales([work(n=2)], [[completion(1), completion(2)]])
    model_cache.keep_embeddings([work(n=2)], {"text": VECTOR})
    assert model_cache.rationales([work(n=1), work(n=3)]) == [[completion(1)], None]
    assert model_cache.embeddings([work(n=1)], ["text"]) == [None]  # a mean over both is none over one


def test_without_rationales_sampling_does_not_matter(model_cache: ModelCache) -> None:
    model_cache.keep_embeddings([work(n=0, temperature=0.0, seed=1, max_tokens=0)], {"text": VECTOR})
    assert model_cache.embeddings([work(n=0, temperature=1.0, seed=2, max_tokens=0)], ["text"]) != [None]
    assert model_cache.rationales([work(n=0)]) == [[]]


def test_an_entry_of_the_wrong_size_is_an_error(model_cache: ModelCache) -> None:
    model_cache.keep_rationales([work()], [[completion(1)]])
    (key,) = model_cache._rationale_keys(work().request)
    model_cache.cache.put({key: b"\0abc"})
    with pytest.raises(CacheError, match="4 bytes that are not a rationale: delete that file"):
        model_cache.rationales([work()])
