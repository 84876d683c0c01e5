"""The released code's rewards, on the vectors of tests/golden/reward_released_code.json."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from grace_exp.config.reward import HardNegativeConfig, NegativeConfig, RewardConfig, TermConfig, TermsConfig
from grace_exp.reward import RewardInputs, compose_reward

CASES = json.loads((Path(__file__).parents[2] / "golden" / "reward_released_code.json").read_text())["cases"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['mode']}-{case['B']}x{case['K']}x{case['H']}")
def test_reward_equals_released_code(case: dict[str, Any]) -> None:
    """Terms, totals and finals within 1e-5. The file's terms are divided by the temperature."""
    groups, samples, temperature = case["B"], case["K"], case["temperature"]
    supervised = case["mode"] == "supervised"
    inputs = RewardInputs(
        rollouts_GKH=torch.tensor(case["rollouts"]),
        anchors_GAH=torch.tensor(case["query"])[:, None],
        negatives_GMH=torch.tensor(case["negative"])[:, None] if supervised else None,
        truncated_GK=torch.tensor(case["truncated"], dtype=torch.bool).view(groups, samples),
        lengths_GK=torch.ones(groups, samples, dtype=torch.int64),
    )
    config = RewardConfig(
        name="paper",
        temperature=temperature,
        terms=TermsConfig(
            positive=TermConfig(),
            negative=NegativeConfig() if supervised else None,
            consistency=TermConfig(weight=case["consistency_weight"]),
            hard_negative=HardNegativeConfig(
                weight=case["hard_negative_weight"], anchor="query" if supervised else "rollout"
            ),
        ),
    )
    expected = {name: torch.tensor(values) for name, values in case["expected"].items()}
    if not supervised:
        # The released code logs it positive here, and subtracts it.
        expected["hard_negative"] = -expected["hard_negative"]

    reward = compose_reward(inputs, config)

    assert set(reward.terms) == set(expected) - {"total_before_truncation", "final"}
    for name, values in reward.terms.items():
        _assert_close(values / temperature, expected[name])
    _assert_close(reward.total_GK, expected["total_before_truncation"])
    _assert_close(reward.final_GK, expected["final"])


def _assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
