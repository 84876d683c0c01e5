import math

import pytest
import torch

from grace_exp.rollout.protocol import Request
from grace_exp.rollout.sampling import Finished, SeededSampler, draw

CPU = torch.device("cpu")


def request(seed: int, temperature: float = 1.0, max_tokens: int = 1) -> Request:
    return Request((1,), 1, max_tokens, temperature, seed)


def test_tokens_of_probability_zero_are_never_chosen() -> None:
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]).expand(2000, -1)
    sampler = SeededSampler([request(seed) for seed in range(2000)], [0] * 2000, 1, CPU)
    chosen = sampler(torch.zeros(2000, 1, dtype=torch.long), logits).argmax(dim=1)
    counts = torch.bincount(chosen, minlength=5).tolist()
    assert counts[0] == counts[2] == counts[4] == 0
    assert abs(counts[1] - 1000) < 4 * 2000**0.5 / 2  # four standard deviations of a fair coin
    torch.testing.assert_close(sampler.logprobs, torch.full((2000, 1), -torch.log(torch.tensor(2.0)).item()))


def test_a_uniform_number_of_zero_chooses_the_first_possible_token() -> None:
    sampler = SeededSampler([request(0)], [0], 1, CPU)
    sampler._uniforms.zero_()
    scores = sampler(torch.zeros(1, 1, dtype=torch.long), torch.tensor([[-torch.inf, 0.0, 1.0]]))
    assert scores.argmax().item() == 1


def test_greedy_takes_the_first_of_the_largest_logits_and_reports_temperature_one() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0]])
    sampler = SeededSampler([request(0, temperature=0.0)], [0], 1, CPU)
    assert sampler(torch.zeros(1, 1, dtype=torch.long), logits).tolist() == [[-torch.inf, 0.0, -torch.inf, -torch.inf]]
    torch.testing.assert_close(sampler.logprobs, logits.log_softmax(-1)[:, 1:2])


def test_a_low_temperature_approaches_greedy_without_overflow() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    sampler = SeededSampler([request(5, temperature=1e-4)], [0], 1, CPU)
    assert sampler(torch.zeros(1, 1, dtype=torch.long), logits).argmax().item() == 1
    assert sampler.logprobs.item() == 0.0


def test_unlikely_tokens_keep_their_probability_behind_a_likely_one() -> None:
    # The first token has all but 1e-5, 10,000 others 1e-9 each: in a float32 running sum sixty of them fall together.
    logits = torch.full((5, 10_001), math.log(1e-9))
    logits[:, 0] = 0.0
    sampler = SeededSampler([request(0)] * 5, range(5), 1, CPU)
    places = torch.tensor([1003.5, 2222.5, 5055.5, 7017.5, 9040.5], dtype=torch.float64)
    sampler._uniforms.copy_(((1 + places * 1e-9) / (1 + 1e-5))[:, None])
    chosen = sampler(torch.zeros(5, 1, dtype=torch.long), logits).argmax(dim=1)
    assert (chosen - (places + 0.5)).abs().max() <= 3


@pytest.mark.parametrize("vocabulary", [1, 127, 128, 1000, 151_936])
def test_tokens_are_where_the_cumulative_distribution_passes_the_uniform_numbers(vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    logits = 6 * torch.randn(16, vocabulary, generator=generator)
    logits[:, ::3] = -torch.inf if vocabulary > 1 else 0.0
    uniforms = torch.rand(16, generator=generator, dtype=torch.float64)
    uniforms[:2] = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    probabilities = logits.softmax(dim=-1)
    tokens = draw(probabilities, uniforms)[:, None]
    exact = logits.double().softmax(dim=-1)
    after = exact.cumsum(dim=-1).gather(1, tokens)[:, 0]
    before = after - exact.gather(1, tokens)[:, 0]
    assert (before <= uniforms + 1e-6).all()
    assert (uniforms <= after + 1e-6).all()
    assert (probabilities.gather(1, tokens) > 0).all()


def finished_after(criterion: Finished, *columns: list[int]) -> list[list[bool]]:
    """What a criterion says after each column of tokens, behind prompts of 3."""
    ids = torch.zeros(len(columns[0]), 3, dtype=torch.long)
    found = []
    for column in columns:
        ids = torch.cat([ids[-len(column) :], torch.tensor(column)[:, None]], dim=1)
        found.append(criterion(ids, ids.float()).tolist())  # type: ignore[arg-type]
    return found


def test_every_row_stops_at_its_own_limit() -> None:
    criterion = Finished([request(0, max_tokens=limit) for limit in (2, 4, 9, 9, 9)], (), 3, CPU)
    yes, no = True, False
    done = finished_after(criterion, *[[0] * 5] * 4)
    assert done == [[no] * 5, [yes, no, no, no, no], [yes, no, no, no, no], [yes, yes, no, no, no]]


def test_when_half_have_ended_all_stop_and_the_others_go_on() -> None:
    criterion = Finished([request(0, max_tokens=9)] * 4, (7, 8), 3, CPU)
    done = finished_after(criterion, [1, 7, 1, 1], [1, 0, 8, 1], [7, 0, 0, 1])
    # Two have ended when the second column is known, and their last tokens are fed with the third.
    assert done == [[False, True, False, False], [False, True, True, False], [True] * 4]
    assert criterion.rest().tolist() == [0, 3]  # row 0 has just ended
    criterion.keep(criterion.rest())
    assert finished_after(criterion, [1, 8]) == [[True, True]]
    assert criterion.rest().tolist() == []
