"""Decode with one thread per core, instead of all cores on every small product.

A decoding step multiplies a few dozen rows with each weight matrix. That is too little for two threads to share: they
spend most of the time waiting for each other, and nearly all of it if other programs run beside them. Whole requests
can be divided without waiting.
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
    """Call `function` on every item, each on its own thread with one torch thread, and return the results in order."""
    if len(items) <= 1:
        return [function(item) for item in items]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that start from here on inherit this
    try:
        with ThreadPoolExecutor(len(items)) as pool:
            return list(pool.map(function, items))
    finally:
        torch.set_num_threads(threads)
