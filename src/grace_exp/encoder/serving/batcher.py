"""Collect requests into batches: the next batch gathers while the model works on one."""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from grace_exp.encoder.serving.answers import Answer, Kind

_log = logging.getLogger(__name__)
_LONGEST_RETRY_S = 60


class QueueFullError(Exception):
    """Too many texts wait; `retry_after` says after how many seconds there may be room."""

    def __init__(self, retry_after: int) -> None:
        """Store the seconds."""
        super().__init__(f"the queue is full; try again in {retry_after} s")
        self.retry_after = retry_after


@dataclass(frozen=True, eq=False)
class _Waiting:
    texts: list[str]
    kind: Kind
    answer: "asyncio.Future[Answer]"


class Batcher:
    """Passes requests of one kind to the model together, in the order of their arrival.

    All methods must be called on one event loop; the model runs in the executor, one batch at a time.

    Attributes:
        waiting_texts: Number of texts that are not in a batch yet.
    """

    def __init__(
        self,
        compute: Callable[[list[str], Kind], Answer],
        executor: Executor,
        *,
        batch_texts: int,
        gather_s: float,
        queue_texts: int,
        on_batch: Callable[[int], None] = lambda texts: None,
    ) -> None:
        """Prepare the queue; `run` does the work.

        Args:
            compute: Embeds the texts of a batch.
            executor: An executor with one thread.
            batch_texts: No further request joins a batch of this size; a request is never divided.
            gather_s: How long an idle model waits for further requests, seconds.
            queue_texts: The most texts that may wait.
            on_batch: Called with the size of every batch.
        """
        self._compute = compute
        self._executor = executor
        self._batch_texts = batch_texts
        self._gather_s = gather_s
        self._queue_texts = queue_texts
        self._on_batch = on_batch
        self._queue: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._texts_per_s = 1.0
        self.waiting_texts = 0

    async def submit(self, texts: list[str], kind: Kind) -> Answer:
        """Wait for the texts' answer. A request that is cancelled before its batch begins is not computed.

        Raises:
            QueueFullError: There is no room. A request that is larger than the queue is accepted if the queue is empty.
        """
        if self._queue and self.waiting_texts + len(texts) > self._queue_texts:
            seconds = math.ceil(self.waiting_texts / self._texts_per_s)
            raise QueueFullError(min(_LONGEST_RETRY_S, max(1, seconds)))
        waiting = _Waiting(texts, kind, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self.waiting_texts += len(texts)
        self._arrived.set()
        return await waiting.answer

    async def run(self) -> None:
        """Answer requests until cancelled."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            if self._gather_s:
                await asyncio.sleep(self._gather_s)
            while batch := self._next_batch():
                await self._answer(batch)

    def _next_batch(self) -> list[_Waiting]:
        """Return the oldest request and further ones of its kind, as far as they fit."""
        batch: list[_Waiting] = []
        remaining: deque[_Waiting] = deque()
        texts = 0
        for waiting in self._queue:
            if waiting.answer.done():  # the client no longer waits for it
                self.waiting_texts -= len(waiting.texts)
            elif not batch or (waiting.kind == batch[0].kind and texts + len(waiting.texts) <= self._batch_texts):
                batch.append(waiting)
                texts += len(waiting.texts)
            else:
                remaining.append(waiting)
        self._queue = remaining
        self.waiting_texts -= texts
        return batch

    async def _answer(self, batch: list[_Waiting]) -> None:
        texts = [text for waiting in batch for text in waiting.texts]
        self._on_batch(len(texts))
        start = time.monotonic()
        try:
            loop = asyncio.get_running_loop()
            answer = await loop.run_in_executor(self._executor, self._compute, texts, batch[0].kind)
        except Exception as error:
            if len(batch) > 1:  # an error of one request must not fail the others
                _log.warning("a batch of %d requests failed (%s): trying each alone", len(batch), error)
                for waiting in batch:
                    await self._answer([waiting])
            elif not batch[0].answer.done():
                batch[0].answer.set_exception(error)
            return
        self._texts_per_s = len(texts) / max(1e-3, time.monotonic() - start)
        first = 0
        for waiting in batch:
            if not waiting.answer.done():
                waiting.answer.set_result(answer[first : first + len(waiting.texts)])
            first += len(waiting.texts)
