import pytest

from grace_exp.errors import GraceError
from grace_exp.rollout.protocol import Request
from grace_exp.rollout.vllm.requests import check_lengths, completions, sampling_settings

ENDS = (2, 7)


def request(n: int = 2, temperature: float = 0.7, seed: int = 3) -> Request:
    return Request((5, 6), n, 4, temperature, seed)


def test_the_whole_distribution_is_sampled() -> None:
    settings = sampling_settings(request(), ENDS)
    assert (settings["top_p"], settings["top_k"], settings["min_p"]) == (1.0, 0, 0.0)
    assert (settings["repetition_penalty"], settings["presence_penalty"], settings["frequency_penalty"]) == (1, 0, 0)
    assert (settings["temperature"], settings["n"], settings["max_tokens"]) == (0.7, 2, 4)
    assert settings["stop_token_ids"] == [2, 7] and settings["ignore_eos"]


def test_neighbouring_seeds_share_no_stream() -> None:
    # vLLM samples with seed, seed + 1, ... seed + n - 1.
    seeds = [sampling_settings(request(seed=seed), ENDS)["seed"] for seed in range(1000)]
    streams = {seed + sample for seed in seeds for sample in range(8)}
    assert len(streams) == 8000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_rationale_ends_by_an_end_token_or_the_limit() -> None:
    written = [([8, 9, 2], [-1.0, -2.0, -3.0]), ([8, 9, 8, 7], [-1.0] * 4), ([8, 9, 8, 8], [-1.0] * 4)]
    found = completions(request(n=3), written, ENDS)
    assert [completion.finish_reason for completion in found] == ["stop", "stop", "length"]
    assert found[0].token_ids == (8, 9, 2)
    assert found[0].logprobs == (-1.0, -2.0, -3.0)


def test_greedy_is_asked_for_once_and_answered_n_times() -> None:
    greedy = request(n=3, temperature=0.0)
    assert sampling_settings(greedy, ENDS)["n"] == 1
    found = completions(greedy, [([8, 2], [-1.0, -1.0])], ENDS)
    assert len(found) == 3 and len(set(found)) == 1


def test_a_sequence_that_is_too_long_is_refused() -> None:
    check_lengths([request()], 6)
    with pytest.raises(GraceError, match=r"prompt of 2 tokens with up to 4 .* is 6 long, .* made for 5"):
        check_lengths([request()], 5)
