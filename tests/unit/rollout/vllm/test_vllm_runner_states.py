"""Pooling of a model runner's steps, with runners that hand out states of a made-up model."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from grace_exp.policy.pooled_states import PooledStates, StatePooling
from grace_exp.rollout.vllm.constants import BLOCK_TOKENS
from grace_exp.rollout.vllm.one_token_more import marked, without_it
from grace_exp.rollout.vllm.runner_states import RunnerStates

PROMPT = tuple(range(100, 100 + 2 * BLOCK_TOKENS + 5))
START = 4
METHODS = {"mean": lambda rows: rows.sum(0), "max": lambda rows: rows.amax(0), "last": lambda rows: rows[-1]}


def states(first: int, count: int, seed: int = 0) -> torch.Tensor:
    """Of the positions of one sequence."""
    return torch.randn(200, 3, generator=torch.Generator().manual_seed(seed))[first : first + count]


class Runner:
    """Keeps a step's states between the two calls, as either of vLLM's runners does."""

    def __init__(self, gpu: bool) -> None:
        self.gpu = gpu
        self.execute_model_state: Any = None
        self.ids: list[str] = []

    def execute_model(self, scheduler_output: Any) -> None:
        rows = scheduler_output.rows
        hidden = torch.cat([states(first, count, seed) for _, first, count, seed in rows])
        ids, firsts, counts = [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]
        batch = SimpleNamespace(
            req_ids=ids, num_computed_tokens_np=np.array(firsts), num_scheduled_tokens=np.array(counts)
        )
        self.execute_model_state = SimpleNamespace(hidden_states=hidden)
        if self.gpu:
            self.execute_model_state.input_batch = batch
        self.input_batch = SimpleNamespace(req_ids=ids, num_computed_tokens_cpu=np.array([*firsts, 0, 0]))

    def sample_tokens(self, grammar: Any) -> str:
        self.execute_model_state = None
        return "sampled"


class Steps:
    """Runs steps of rows (request, first position, tokens, seed of its states)."""

    def __init__(self, gpu: bool = False) -> None:
        self.runner = Runner(gpu)
        self.pool = RunnerStates(self.runner)
        self.known: dict[str, int] = {}

    def begin(self, *prompts: tuple[int, ...], method: Any = "mean") -> None:
        self.pool.begin(list(prompts), [StatePooling(START, method, -1)] * len(prompts))
        self.known = {}

    def step(self, *rows: tuple[str, int, int, int]) -> None:
        new = []
        for name, *_ in rows:
            if name not in self.known:
                self.known[name] = len(self.known)
                arguments = marked({"max_tokens": 9, "stop_token_ids": [2]}, self.known[name], 999, 0)
                new.append(SimpleNamespace(req_id=name, sampling_params=SimpleNamespace(**arguments)))
        output = SimpleNamespace(
            rows=rows, scheduled_new_reqs=new, num_scheduled_tokens={name: count for name, _, count, _ in rows}
        )
        self.runner.execute_model(output)
        assert self.runner.sample_tokens(None) == "sampled"


def assert_pooled(found: PooledStates | None, prompt: int, tokens: int, seed: int, method: str = "mean") -> None:
    assert found is not None
    everything = states(0, prompt + tokens, seed)
    torch.testing.assert_close(found.text_H, METHODS[method](everything[START:prompt]))
    torch.testing.assert_close(found.rationale_H, METHODS[method](everything[prompt:]))
    assert (found.text_tokens, found.rationale_tokens) == (prompt - START, tokens)


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_chunks_of_prompts_and_single_tokens_are_pooled_by_request(method: str, gpu: bool) -> None:
    steps, length = Steps(gpu), len(PROMPT)
    steps.begin(PROMPT, PROMPT[:6], method=method)
    steps.step(("a", 0, 3, 1))
    steps.step(("a", 3, 20, 1), ("b", 0, 6, 2))
    steps.step(("b", 6, 1, 2), ("a", 23, length - 23, 1))
    steps.step(("b", 7, 1, 2), ("a", length, 1, 1))
    assert_pooled(steps.pool.found(0, 1), length, 1, 1, method)
    assert_pooled(steps.pool.found(1, 2), 6, 2, 2, method)


@pytest.mark.parametrize("method", METHODS)
def test_a_step_too_many_does_not_count(method: str) -> None:
    steps, length = Steps(), len(PROMPT)
    steps.begin(PROMPT, method=method)
    steps.step(("a", 0, length, 1))
    for token in range(3):
        steps.step(("a", length + token, 1, 1))
    assert_pooled(steps.pool.found(0, 2), length, 2, 1, method)
    assert steps.pool.found(0, 1) is None  # two too many
    assert steps.pool.found(0, 4) is None  # one is missing


def test_what_is_computed_again_after_a_pause_counts_once() -> None:
    steps, length = Steps(), len(PROMPT)
    steps.begin(PROMPT)
    steps.step(("a", 0, length, 1))
    steps.step(("a", length, 1, 1))
    steps.step(("a", 2, length, 1))  # again up to the second rationale token
    assert_pooled(steps.pool.found(0, 2), length, 2, 1)


def test_whole_blocks_in_the_prefix_cache_are_remembered_until_the_weights_change() -> None:
    steps, length = Steps(), len(PROMPT)
    other = (*PROMPT[: 2 * BLOCK_TOKENS], 7, 8)
    for call in range(3):
        if call == 2:
            steps.pool.forget()
        steps.begin(other if call else PROMPT)
        first = 2 * BLOCK_TOKENS if call else 0
        prompt = len(other) if call else length
        steps.step(("a", first, prompt - first, 1))
        steps.step(("a", prompt, 1, 1))
        if call == 2:
            assert steps.pool.found(0, 1) is None
        else:
            assert_pooled(steps.pool.found(0, 1), prompt, 1, 1)


def test_tokens_that_never_passed_by_leave_no_states() -> None:
    steps = Steps()
    steps.begin(PROMPT)
    steps.step(("a", 0, 10, 1))
    steps.step(("a", 12, len(PROMPT) - 12, 1))
    steps.step(("a", len(PROMPT), 1, 1))
    assert steps.pool.found(0, 1) is None


def test_one_token_more_is_asked_for_and_taken_away_again() -> None:
    from grace_exp.rollout.protocol import Request

    arguments = marked({"max_tokens": 3, "stop_token_ids": [2, 5]}, 0, 20, 10)
    assert (arguments["max_tokens"], arguments["stop_token_ids"]) == (4, [])
    assert marked({"max_tokens": 10, "stop_token_ids": []}, 0, 20, 10)["max_tokens"] == 10  # there is no room
    request = Request((1,), 1, 3, 1.0, 0)
    ended = without_it(request, ([7, 5, 9], [-1.0, -2.0, -3.0]), (2, 5))
    assert (ended.token_ids, ended.logprobs, ended.finish_reason) == ((7, 5), (-1.0, -2.0), "stop")
    cut = without_it(request, ([7, 8, 9, 5], [-1.0, -2.0, -3.0, -4.0]), (2, 5))
    assert (cut.token_ids, cut.finish_reason) == ((7, 8, 9), "length")
    assert without_it(request, ([7, 8, 5, 9], [0.0] * 4), (2, 5)).finish_reason == "stop"
