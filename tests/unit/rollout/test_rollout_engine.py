from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import PreTrainedModel

from grace_exp.rollout.protocol import Completion, Request

Prompts = list[tuple[int, ...]]
MAX_TOKENS = 12


def requests(
    prompts: Prompts, *, n: int = 2, temperature: float = 1.0, max_tokens: int = MAX_TOKENS, seed: int = 0
) -> list[Request]:
    return [Request(prompt, n, max_tokens, temperature, seed + i) for i, prompt in enumerate(prompts)]


def tokens(answers: Sequence[Sequence[Completion]]) -> list[list[tuple[int, ...]]]:
    return [[completion.token_ids for completion in answer] for answer in answers]


@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.0])
def test_logprobs_are_those_of_a_plain_forward(
    shared_model: PreTrainedModel, engine: Any, prompts: Prompts, plain_logprobs: Any, temperature: float
) -> None:
    asked = requests(prompts, temperature=temperature, n=3)
    for request, answer in zip(asked, engine().generate(asked), strict=True):
        assert len(answer) == 3
        for completion in answer:
            expected = plain_logprobs(shared_model, request, completion)
            np.testing.assert_allclose(completion.logprobs, expected.numpy(), atol=1e-5, rtol=0)


@pytest.fixture
def related(prompts: Prompts) -> Prompts:
    """Prompts with a common head, one of them nothing more, two of them equal."""
    head = prompts[2][:9]
    return [head + prompts[0], head, head + prompts[5], head + prompts[1], head + prompts[0], prompts[2]]


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_logprobs_are_those_of_a_plain_forward_where_prompts_begin_alike(
    shared_model: PreTrainedModel, engine: Any, related: Prompts, plain_logprobs: Any, temperature: float
) -> None:
    asked = requests(related, temperature=temperature, n=2)
    answers = engine().generate(asked)
    for request, answer in zip(asked, answers, strict=True):
        for completion in answer:
            expected = plain_logprobs(shared_model, request, completion)
            np.testing.assert_allclose(completion.logprobs, expected.numpy(), atol=1e-5, rtol=0)
    assert [tokens(engine().generate([request]))[0] for request in asked] == tokens(answers)


def test_what_prompts_have_in_common_is_read_once(model: PreTrainedModel, engine: Any, related: Prompts) -> None:
    read = []

    def record(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        read.append(tuple(kwargs["input_ids"].shape))

    model.register_forward_pre_hook(record, with_kwargs=True)
    engine(model).generate(requests(related, max_tokens=1))
    assert read == [(1, 8), (6, 21), (12, 1)]  # the shortest prompt's last token is kept for decoding


def test_requests_of_one_call_keep_their_own_temperature_limit_and_number(
    shared_model: PreTrainedModel, engine: Any, prompts: Prompts, plain_logprobs: Any
) -> None:
    asked = [
        Request(prompt, n, limit, temperature, seed)
        for seed, (prompt, n, limit, temperature) in enumerate(
            zip(prompts, (1, 4, 2, 1, 3, 1), (5, 9, 1, 20, 3, 7), (1.0, 0.0, 0.5, 2.0, 0.7, 0.0), strict=True)
        )
    ]
    for request, answer in zip(asked, engine().generate(asked), strict=True):
        assert len(answer) == request.n
        for completion in answer:
            assert 1 <= len(completion.token_ids) <= request.max_tokens
            expected = plain_logprobs(shared_model, request, completion)
            np.testing.assert_allclose(completion.logprobs, expected.numpy(), atol=1e-5, rtol=0)
        if request.temperature == 0:
            assert len({completion.token_ids for completion in answer}) == 1


def test_equal_seeds_give_equal_rationales_whatever_else_is_in_the_call(engine: Any, prompts: Prompts) -> None:
    asked = requests(prompts, n=3)
    together = tokens(engine().generate(asked))
    assert [tokens(engine().generate([request]))[0] for request in asked] == together
    assert tokens(engine().generate(asked[::-1])) == together[::-1]
    for batch_tokens in (1, 150, 400):
        assert tokens(engine(batch_tokens=batch_tokens).generate(asked)) == together
    others = [*requests(prompts, n=5, temperature=0.3, max_tokens=17, seed=90), *asked]
    assert tokens(engine().generate(others))[len(prompts) :] == together


def test_other_seeds_and_other_samples_of_a_seed_give_other_rationales(engine: Any, prompts: Prompts) -> None:
    asked = [Request(prompts[0], 8, MAX_TOKENS, 1.0, seed) for seed in range(8)]
    written = [rationale for answer in tokens(engine().generate(asked)) for rationale in answer]
    assert len(set(written)) >= 60  # of 64; one of few tokens may recur


def test_more_samples_begin_with_the_fewer(engine: Any, prompts: Prompts) -> None:
    four = tokens(engine().generate(requests(prompts, n=4)))
    eight = tokens(engine().generate(requests(prompts, n=8)))
    assert [answer[:4] for answer in eight] == four


def test_a_higher_limit_continues_the_same_rationales(engine: Any, prompts: Prompts) -> None:
    short = tokens(engine().generate(requests(prompts, max_tokens=4)))
    long = tokens(engine().generate(requests(prompts, max_tokens=15)))
    assert [[rationale[:4] for rationale in answer] for answer in long] == short


def test_greedy_is_transformers_own_greedy_search(shared_model: PreTrainedModel, engine: Any, prompts: Prompts) -> None:
    answers = engine(end_token_ids=[2]).generate(requests(prompts, n=1, temperature=0.0))
    for prompt, (completion,) in zip(prompts, answers, strict=True):
        generate: Any = shared_model.generate
        own = generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=MAX_TOKENS,
            eos_token_id=2,
            pad_token_id=0,
        )
        assert completion.token_ids == tuple(own[0, len(prompt) :].tolist())


@pytest.mark.parametrize(("streams", "temperature"), [("samples", 1.0), ("samples", 0.5), ("seeds", 1.0)])
def test_first_tokens_follow_the_models_distribution(
    shared_model: PreTrainedModel, engine: Any, prompts: Prompts, streams: str, temperature: float
) -> None:
    draws = 2000
    if streams == "samples":
        asked = [Request(prompts[3], draws, 1, temperature, 11)]
    else:
        asked = [Request(prompts[3], 1, 1, temperature, seed) for seed in range(draws)]
    drawn = [completion.token_ids[0] for answer in engine().generate(asked) for completion in answer]
    with torch.no_grad():
        logits = shared_model(torch.tensor([prompts[3]])).logits[0, -1].double()
    probabilities = (logits / temperature).softmax(-1).numpy()
    likely = np.argsort(-probabilities)[:25]
    counts = np.bincount(drawn, minlength=len(probabilities))
    observed = np.append(counts[likely], draws - counts[likely].sum())
    expected = draws * np.append(probabilities[likely], 1 - probabilities[likely].sum())
    assert expected.min() > 5  # where the chi-square test holds
    assert chisquare(observed, expected).pvalue > 1e-3


def test_successive_tokens_are_drawn_independently(
    engine: Any, prompts: Prompts, shared_model: PreTrainedModel
) -> None:
    # The probability integral transform of the second token, given the first, is uniform whatever the first was.
    asked = [Request(prompts[3], 3000, 2, 1.0, 5)]
    written = [c.token_ids for c in engine(end_token_ids=[2]).generate(asked)[0] if len(c.token_ids) == 2]
    first = sorted({one for one, _ in written})
    with torch.no_grad():
        logits = shared_model(torch.tensor([(*prompts[3], one) for one in first])).logits[:, -1].double()
    cumulative = dict(zip(first, logits.softmax(-1).cumsum(-1).numpy(), strict=True))
    ranks = np.array([cumulative[one][two] for one, two in written])
    assert chisquare(np.histogram(ranks, bins=10, range=(0, 1))[0]).pvalue > 1e-3
    firsts = np.array([one for one, _ in written])
    assert abs(np.corrcoef(firsts, ranks)[0, 1]) < 4 / len(ranks) ** 0.5


def test_a_rationale_stops_at_the_first_end_token_which_it_includes(engine: Any, prompts: Prompts) -> None:
    ends = {2, *range(40, 100)}
    completions = [c for answer in engine().generate(requests(prompts, n=20)) for c in answer]
    stopped = [c for c in completions if c.finish_reason == "stop"]
    cut = [c for c in completions if c.finish_reason == "length"]
    assert len(stopped) > 10
    assert len(cut) > 10
    for completion in stopped:
        assert completion.token_ids[-1] in ends
        assert not ends & set(completion.token_ids[:-1])
        assert not completion.truncated
    for completion in cut:
        assert len(completion.token_ids) == MAX_TOKENS
        assert not ends & set(completion.token_ids)
        assert completion.truncated
    assert len({completion.token_ids[-1] for completion in stopped}) > 5  # not only the first of the end tokens


def test_an_end_token_at_the_limit_is_a_stop(engine: Any, prompts: Prompts) -> None:
    answers = engine(end_token_ids=range(1024)).generate(requests(prompts, max_tokens=1))
    assert {c.finish_reason for answer in answers for c in answer} == {"stop"}


def test_decoding_stays_within_the_token_budget(model: PreTrainedModel, engine: Any, prompts: Prompts) -> None:
    held = []

    def record(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        rows, width = kwargs["input_ids"].shape
        held.append(rows * (width + kwargs["past_key_values"].get_seq_length()))

    model.register_forward_pre_hook(record, with_kwargs=True)
    # Long prompts with low limits beside short ones with high limits: rows x (widest prompt + highest limit) counts.
    asked = [Request(prompt, 2, 40 - len(prompt), 1.0, 0) for prompt in prompts]
    engine(model, end_token_ids=[1023], batch_tokens=250).generate(asked)
    assert max(held) <= 250
    assert max(held) > 100


def test_a_request_is_never_split(model: PreTrainedModel, engine: Any, prompts: Prompts) -> None:
    rows: set[int] = set()
    model.register_forward_pre_hook(lambda _m, _a, kwargs: rows.add(len(kwargs["input_ids"])), with_kwargs=True)
    engine(model, end_token_ids=(), batch_tokens=1).generate(requests(prompts[2:], n=7))
    assert rows == {1, 7}  # its prompt once, then all its rationales


def test_settings_that_a_model_brings_along_change_nothing(
    model: PreTrainedModel, engine: Any, prompts: Prompts
) -> None:
    asked = requests(prompts)
    expected = engine(model).generate(asked)
    settings: Any = model.generation_config
    settings.repetition_penalty = 2.0
    settings.no_repeat_ngram_size = 1
    settings.min_new_tokens = MAX_TOKENS
    settings.suppress_tokens = list(range(500))
    settings.temperature = 0.1
    settings.top_k = 3
    settings.do_sample = True
    assert engine(model).generate(asked) == expected
    assert model.generation_config is settings  # an export still has them
    assert settings.repetition_penalty == 2.0


@pytest.mark.parametrize("training", [True, False])
def test_rationales_are_written_in_evaluation_mode_which_is_then_left(
    model: PreTrainedModel, engine: Any, prompts: Prompts, training: bool
) -> None:
    expected = engine(model.eval()).generate(requests(prompts))
    for layer in model.get_decoder().layers:
        layer.self_attn.attention_dropout = 0.5
    model.train(training)
    assert engine(model).generate(requests(prompts)) == expected
    assert model.training is training


def test_global_random_state_is_neither_used_nor_moved(engine: Any, prompts: Prompts) -> None:
    torch.manual_seed(1)
    first = tokens(engine().generate(requests(prompts)))
    state = torch.manual_seed(2).get_state()
    assert tokens(engine().generate(requests(prompts))) == first
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_without_adapters_is_read_as_it_is_now(
    model: PreTrainedModel, engine: Any, prompts: Prompts, plain_logprobs: Callable[..., Any]
) -> None:
    writer = engine(model)
    writer.generate(requests(prompts))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    asked = requests(prompts)
    for request, answer in zip(asked, writer.generate(asked), strict=True):
        for completion in answer:
            expected = plain_logprobs(model, request, completion)
            np.testing.assert_allclose(completion.logprobs, expected.numpy(), atol=1e-5, rtol=0)


def test_no_requests_give_no_answers(engine: Any) -> None:
    assert engine().generate([]) == []


def test_rationales_that_end_leave_the_batch(model: PreTrainedModel, engine: Any, prompts: Prompts) -> None:
    fed = []

    def record(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        fed.append(len(kwargs["input_ids"]))

    asked = [Request(prompt, 4, 40, 1.0, seed) for seed, prompt in enumerate(prompts)]
    asked[0] = Request(prompts[0], 4, 9, 1.0, 0)
    handle = model.register_forward_pre_hook(record, with_kwargs=True)
    answers = engine(model, end_token_ids=range(40, 100)).generate(asked)
    handle.remove()
    decoding = fed[-max(len(one.token_ids) for answer in answers for one in answer) :]
    assert decoding[0] == 4 * len(prompts) and decoding == sorted(decoding, reverse=True)
    for step, rows in enumerate(decoding):
        alive = sum(len(one.token_ids) >= step for answer in answers for one in answer)
        assert rows <= max(2 * alive, 1)
    alone = [engine(model, end_token_ids=range(40, 100)).generate([request])[0] for request in asked]
    assert tokens(alone) == tokens(answers)
    for one, other in zip(answers, alone, strict=True):
        for mine, its in zip(one, other, strict=True):
            np.testing.assert_allclose(mine.logprobs, its.logprobs, atol=1e-5, rtol=0)
            assert mine.finish_reason == its.finish_reason
