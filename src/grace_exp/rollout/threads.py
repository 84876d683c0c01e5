"""One decoding thread a core, instead of all cores on every small product.

A decoding step multiplies a few dozen rows with each weight matrix: too little for two threads to share, so most of
their time goes into waiting for one another, and where other programs run beside, nearly all of it. Whole requests
divide without waiting.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from grace_exp.rollout.protocol import Request

Item = TypeVar("Item")
Result = TypeVar("Result")


def shares(requests: Sequence[Request], workers: int) -> list[list[int]]:
    """Divide requests (their indices) into at most `workers` shares of about equal work; none is empty."""
    work = [request.n * (len(request.prompt_ids) + request.max_tokens) for request in requests]
    found: list[list[int]] = [[] for _ in range(min(workers, len(requests)))]
    loads = [0] * len(found)
    for index in sorted(range(len(requests)), key=lambda i: -work[i]):
        lightest = loads.index(min(loads))
        found[lightest].append(index)
        loads[lightest] += work[index]
    return found


def map_on_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Call `function` on every item, each on a thread of its own with one torch thread; the results in order."""
    if len(items) <= 1:
        return [function(item) for item in items]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads started from here on inherit it
    try:
        with ThreadPoolExecutor(len(items)) as pool:
            return list(pool.map(function, items))
    finally:
        torch.set_num_threads(threads)
