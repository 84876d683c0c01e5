"""The watchdog warns once of each collapse, after `patience` steps in a row."""

import math

import pytest

from grace_exp.config.callbacks import WatchdogConfig
from grace_exp.training.collapse import Collapse

HEALTHY = {
    "embed/effective_rank": 10.0,
    "rollout/entropy": 2.0,
    "rollout/tokens_mean": 12.0,
    "rollout/truncated_share": 0.5,
    "rollout/most_common_share": 0.1,
    "reward/zero_spread_share": 0.0,
    "mismatch/k3": 1e-4,
}
COLLAPSED = {
    "effective_rank": ("embed/effective_rank", 2.9, "effective rank is 2.90, below 0.3 of the 10.00 of the start"),
    "entropy": ("rollout/entropy", 0.59, "0.590 nats a token, below 0.3 of the 2.000 of the start"),
    "empty": ("rollout/tokens_mean", 1.0, "rationales shrink to nothing: 1.0 tokens, below 2"),
    "truncated": ("rollout/truncated_share", 1.0, "a share of 1.00 is cut, above 0.95"),
    "common_rationale": ("rollout/most_common_share", 0.75, "one rationale for many texts: a share of 0.75"),
    "no_spread": ("reward/zero_spread_share", 1.0, "do not differ within a share of 1.00 of the groups"),
    "mismatch": ("mismatch/k3", 0.2, "mismatch/k3 is 0.2 nats a token, above 0.1"),
}


def watched(*, truncation: bool = True) -> Collapse:
    collapse = Collapse(WatchdogConfig(), truncation=truncation)
    assert [collapse.observe(HEALTHY) for _ in range(5)] == [[]] * 5
    return collapse


@pytest.mark.parametrize("kind", COLLAPSED)
def test_a_collapse_is_said_once_after_five_steps(kind: str) -> None:
    metric, value, words = COLLAPSED[kind]
    collapse = watched()
    said = [collapse.observe(HEALTHY | {metric: value}) for _ in range(20)]
    assert said[:4] == [[]] * 4 and said[5:] == [[]] * 15
    ((found, message),) = said[4]
    assert found == kind and words in message and "5 steps in a row" in message


def test_a_healthy_step_between_starts_the_count_anew() -> None:
    collapse = watched()
    for _ in range(6):
        for _ in range(4):
            assert collapse.observe(HEALTHY | {"rollout/tokens_mean": 1.0}) == []
        assert collapse.observe(HEALTHY) == []


def test_missing_and_nan_figures_say_nothing() -> None:
    collapse = watched()
    for _ in range(20):
        assert collapse.observe({"train/loss": 1.0, "rollout/entropy": math.nan}) == []


def test_cut_rationales_are_meant_where_no_rule_punishes_them() -> None:
    collapse = watched(truncation=False)
    assert not any(collapse.observe(HEALTHY | {"rollout/truncated_share": 1.0}) for _ in range(20))


def test_a_threshold_of_null_is_not_watched() -> None:
    collapse = Collapse(WatchdogConfig(max_mismatch=None, patience=1), truncation=True)
    assert not any(collapse.observe(HEALTHY | {"mismatch/k3": 9.0}) for _ in range(9))
