"""Requests gather into batches, and a full queue refuses."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from grace_exp.data.batch import Role
from grace_exp.encoder.serving.answers import Answer, Kind
from grace_exp.encoder.serving.batcher import Batcher, QueueFullError

QUERY, DOCUMENT = Kind(Role.QUERY, 4), Kind(Role.POSITIVE, 4)


class Model:
    """Embeds a text as its number; takes its time."""

    def __init__(self, seconds: float = 0.05) -> None:
        self.batches: list[list[str]] = []
        self.seconds = seconds

    def compute(self, texts: list[str], kind: Kind) -> Answer:
        self.batches.append(texts)
        time.sleep(self.seconds)
        if "bad" in texts:
            raise ValueError("bad")
        return Answer(np.array([[float(text)] for text in texts], np.float32), [[text] for text in texts], [1] * 9)


def served(model: Model, talk: Callable[[Batcher], Awaitable[Any]], **settings: Any) -> Any:
    async def main() -> Any:
        with ThreadPoolExecutor(1) as executor:
            limits = {"batch_texts": 4, "gather_s": 0.01, "queue_texts": 100} | settings
            batcher = Batcher(model.compute, executor, **limits)
            task = asyncio.create_task(batcher.run())
            try:
                return await talk(batcher)
            finally:
                task.cancel()

    return asyncio.run(main())


def test_requests_that_come_together_are_one_batch_and_get_their_own_answers() -> None:
    model = Model()

    async def talk(batcher: Batcher) -> list[Answer]:
        asked = [batcher.submit([str(number)], QUERY) for number in range(3)]
        return await asyncio.gather(*asked, batcher.submit(["7", "8"], DOCUMENT))

    answers = served(model, talk)
    assert [answer.vectors[:, 0].tolist() for answer in answers] == [[0], [1], [2], [7, 8]]
    assert answers[3].rationales == [["7"], ["8"]]
    assert model.batches == [["0", "1", "2"], ["7", "8"]]


def test_under_load_what_arrives_meanwhile_becomes_the_next_batch_within_its_limit() -> None:
    model = Model()

    async def talk(batcher: Batcher) -> None:
        first = asyncio.create_task(batcher.submit(["0"], QUERY))
        await asyncio.sleep(0.03)
        await asyncio.gather(first, *(batcher.submit([str(number)], QUERY) for number in range(1, 7)))

    served(model, talk, gather_s=0.0)
    assert [len(batch) for batch in model.batches] == [1, 4, 2]


def test_a_full_queue_refuses_and_says_when_to_come_again() -> None:
    model = Model(0.2)

    async def talk(batcher: Batcher) -> int:
        running = asyncio.create_task(batcher.submit(["0"], QUERY))
        await asyncio.sleep(0.05)
        waiting = asyncio.create_task(batcher.submit(["1", "2"], QUERY))
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError) as raised:
            await batcher.submit(["3"], QUERY)
        await asyncio.gather(running, waiting)
        await batcher.submit(["3"], QUERY)
        assert batcher.waiting_texts == 0
        return raised.value.retry_after

    assert 1 <= served(model, talk, queue_texts=2, gather_s=0.0) <= 60


def test_what_nobody_waits_for_any_more_is_not_computed() -> None:
    model = Model(0.1)

    async def talk(batcher: Batcher) -> None:
        running = asyncio.create_task(batcher.submit(["0"], QUERY))
        await asyncio.sleep(0.03)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(batcher.submit(["1"], QUERY), 0.01)
        await running
        await batcher.submit(["2"], QUERY)

    served(model, talk, gather_s=0.0)
    assert model.batches == [["0"], ["2"]]


def test_a_request_that_fails_does_not_take_others_with_it() -> None:
    async def talk(batcher: Batcher) -> list[Any]:
        asked = [batcher.submit([text], QUERY) for text in ("1", "bad", "2")]
        return await asyncio.gather(*asked, return_exceptions=True)

    good, bad, other = served(Model(0.0), talk)
    assert (good.vectors.item(), other.vectors.item()) == (1, 2)
    assert isinstance(bad, ValueError)
