import math

import pytest
import torch
from torch import Tensor

from grace_exp.config.objective import ImportanceConfig
from grace_exp.rollout.protocol import Completion
from grace_exp.training.step.mismatch import engine_logprobs, mismatch_metrics

NONE = ImportanceConfig()
MASK = torch.tensor([[True, True, True], [True, False, False]])
ENGINE = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, math.nan, math.nan]])


def alone(values: Tensor, operation: str) -> Tensor:
    return values


def figures(trainer: Tensor, engine: Tensor = ENGINE, config: ImportanceConfig = NONE) -> dict[str, float]:
    found = mismatch_metrics(engine, trainer, MASK, config, alone)
    return {name.removeprefix("mismatch/"): value for name, value in found.items()}


def shifted(*ratios: float) -> Tensor:
    """The trainer's log-probs whose probabilities are these multiples of the engine's, nan at padding."""
    rows = torch.tensor([[*ratios[:3]], [ratios[3], math.nan, math.nan]])
    return ENGINE + rows.log()


def test_an_engine_that_agrees_is_at_distance_zero() -> None:
    assert figures(ENGINE) == {
        "logprob_abs_mean": 0,
        "logprob_abs_max": 0,
        "k3": 0,
        "ratio_mean": 1,
        "ratio_max": 1,
        "ess_token": 1,
        "ess_sequence": 1,
        "truncated_share": 0,
        "masked_share": 0,
        "nonfinite": 0,
    }


def test_ratios_of_one_two_and_four() -> None:
    """Closed forms; the first rationale's ratio is 1/2 x 1 x 4 = 2, the second's 2."""
    found = figures(shifted(0.5, 1, 4, 2))
    logs = [abs(math.log(ratio)) for ratio in (0.5, 1, 4, 2)]
    assert found["logprob_abs_mean"] == pytest.approx(sum(logs) / 4)
    assert found["logprob_abs_max"] == pytest.approx(math.log(4))
    assert found["k3"] == pytest.approx(sum(r - 1 - math.log(r) for r in (0.5, 1, 4, 2)) / 4)
    assert (found["ratio_mean"], found["ratio_max"]) == (pytest.approx(7.5 / 4), pytest.approx(4))
    assert found["ess_token"] == pytest.approx(7.5**2 / (4 * (0.25 + 1 + 16 + 4)))
    assert found["ess_sequence"] == pytest.approx(1)


def test_one_weight_that_outweighs_all_leaves_one_sample() -> None:
    assert figures(shifted(1, 1, 1e6, 1))["ess_token"] == pytest.approx(1 / 4, rel=1e-3)
    assert figures(shifted(1, 1, 1e6, 1))["ess_sequence"] == pytest.approx(1 / 2, rel=1e-3)


@pytest.mark.parametrize(
    ("config", "share"),
    [
        (NONE, 0),
        (ImportanceConfig(mode="token", cap=1.5), 2 / 4),
        (ImportanceConfig(mode="token", cap=3.0), 1 / 4),
        (ImportanceConfig(mode="sequence", cap=1.5), 3 / 4),  # 4 x 1/2 x 2 = 4; the other's is 1
        (ImportanceConfig(mode="sequence", cap=5.0), 0),
    ],
)
def test_what_the_correction_cuts_is_counted(config: ImportanceConfig, share: float) -> None:
    found = figures(ENGINE + torch.tensor([[4, 0.5, 2], [1, 1, 1]]).log(), config=config)
    assert found["truncated_share"] == pytest.approx(share)


def test_tokens_without_an_engine_log_prob_are_counted_and_left_out() -> None:
    engine = ENGINE.clone()
    engine[0, 0], engine[0, 2] = -math.inf, math.nan
    found = figures(shifted(1, 2, 1, 2), engine)
    assert (found["nonfinite"], found["masked_share"]) == (2, 0.5)
    assert found["logprob_abs_mean"] == pytest.approx(math.log(2)) and found["ratio_max"] == pytest.approx(2)


def test_nothing_finite_gives_figures_all_the_same() -> None:
    found = figures(ENGINE, torch.full_like(ENGINE, math.nan))
    assert found["nonfinite"] == 4 and all(math.isfinite(value) for value in found.values())


def test_two_processes_say_what_one_would() -> None:
    """Sums and maxima are over all processes, whose rows may differ in length."""
    trainer, config = shifted(0.5, 1, 4, 2), ImportanceConfig(mode="token", cap=1.5)
    whole = mismatch_metrics(ENGINE, trainer, MASK, config, alone)
    seen: dict[str, list[Tensor]] = {"sum": [], "max": []}

    def record(values: Tensor, operation: str) -> Tensor:
        seen[operation].append(values)
        return values

    parts = [(slice(0, 1), slice(None)), (slice(1, 2), slice(0, 1))]
    for part in parts:
        mismatch_metrics(ENGINE[part], trainer[part], MASK[part], config, record)
    together = {"sum": torch.stack(seen["sum"]).sum(dim=0), "max": torch.stack(seen["max"]).amax(dim=0)}
    found = mismatch_metrics(ENGINE[parts[0]], trainer[parts[0]], MASK[parts[0]], config, lambda _, op: together[op])
    assert found == pytest.approx(whole)


def test_the_engines_log_probs_stand_where_the_trainers_do() -> None:
    completions = [Completion((4, 5, 2), (-1.0, -2.0, -3.0), "stop"), Completion((2,), (-1.0,), "stop")]
    found = engine_logprobs(completions, like_NT=torch.zeros(2, 3))
    torch.testing.assert_close(found, ENGINE, equal_nan=True)
