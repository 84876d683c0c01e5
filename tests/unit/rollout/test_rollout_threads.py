import threading
from typing import Any

import numpy as np
import pytest
import torch

from grace_exp.rollout.protocol import Request
from grace_exp.rollout.threads import map_on_threads, shares


@pytest.fixture
def two_threads(one_thread: None) -> None:
    torch.set_num_threads(2)  # `one_thread` puts back what was before


def requests(prompts: list[tuple[int, ...]], n: int = 3) -> list[Request]:
    return [Request(prompt, n, 12, 1.0, seed) for seed, prompt in enumerate(prompts)]


@pytest.mark.parametrize("workers", [1, 2, 3, 16])
def test_every_request_is_in_one_share_and_no_share_is_empty(prompts: list[tuple[int, ...]], workers: int) -> None:
    found = shares(requests(prompts), workers)
    assert sorted(index for share in found for index in share) == list(range(len(prompts)))
    assert len(found) == min(workers, len(prompts))
    assert all(found)


def test_shares_are_of_about_equal_work() -> None:
    draw = np.random.default_rng(0)
    asked = [Request((1,) * int(draw.integers(1, 90)), int(draw.integers(1, 9)), 24, 1.0, 0) for _ in range(40)]
    work = [sum(asked[i].n * (len(asked[i].prompt_ids) + 24) for i in share) for share in shares(asked, 4)]
    assert max(work) < 1.05 * min(work)


def test_results_come_in_the_order_of_the_items_from_threads_of_one_torch_thread_each(two_threads: None) -> None:
    here = threading.get_ident()
    together = threading.Barrier(2, timeout=30)  # both are under way at once

    def look(item: int) -> tuple[int, int, bool]:
        together.wait()
        return item, torch.get_num_threads(), threading.get_ident() == here

    assert map_on_threads(look, [5, 3]) == [(5, 1, False), (3, 1, False)]
    assert torch.get_num_threads() == 2


def test_an_error_on_a_thread_reaches_the_caller(two_threads: None) -> None:
    with pytest.raises(ZeroDivisionError):
        map_on_threads(lambda item: 1 // item, [1, 0, 2])
    assert torch.get_num_threads() == 2


def test_rationales_do_not_depend_on_the_number_of_threads(
    engine: Any, prompts: list[tuple[int, ...]], two_threads: None
) -> None:
    on_two = engine().generate(requests(prompts))
    torch.set_num_threads(1)
    on_one = engine().generate(requests(prompts))
    assert [[c.token_ids for c in answer] for answer in on_two] == [[c.token_ids for c in answer] for answer in on_one]
    for two, one in zip(on_two, on_one, strict=True):
        for a, b in zip(two, one, strict=True):
            np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5, rtol=0)


def test_writing_on_threads_records_no_gradients(
    model: Any, engine: Any, prompts: list[tuple[int, ...]], two_threads: None
) -> None:
    recorded = []
    model.register_forward_hook(lambda _m, _a, output: recorded.append(output.logits.requires_grad))
    engine(model).generate(requests(prompts))
    assert recorded
    assert not any(recorded)
