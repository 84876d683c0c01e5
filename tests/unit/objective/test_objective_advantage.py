"""Advantages: centred, scaled, and zero where nothing differs."""

from typing import Literal

import pytest
import torch

from grace_exp.objective import group_advantages
from grace_exp.objective.advantage import STD_EPSILON

Scale = Literal["none", "group_std", "batch_std"]
SCALES: list[Scale] = ["none", "group_std", "batch_std"]
REWARDS = torch.tensor([[0.0, 2.0], [10.0, 16.0]])


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        ("none", [[-1.0, 1.0], [-3.0, 3.0]]),
        (
            "group_std",
            [[-1 / (1 + STD_EPSILON), 1 / (1 + STD_EPSILON)], [-3 / (3 + STD_EPSILON), 3 / (3 + STD_EPSILON)]],
        ),
        # Centred values -1, 1, -3, 3: root mean square sqrt 5.
        ("batch_std", [[x / (5**0.5 + STD_EPSILON) for x in row] for row in ([-1, 1], [-3, 3])]),
    ],
)
def test_known_rewards(scale: Scale, expected: list[list[float]]) -> None:
    """Closed form."""
    torch.testing.assert_close(group_advantages(REWARDS, scale), torch.tensor(expected))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("samples", [1, 3, 7])
def test_equal_rewards_give_exactly_zero(scale: Scale, samples: int) -> None:
    """0.1 x 3 / 3 is not 0.1 in float32, yet nothing may train; nor may a deviation of zero make nan."""
    rewards = torch.tensor([0.1, -7.3, 1e4])[:, None].expand(3, samples)
    assert torch.equal(group_advantages(rewards, scale), torch.zeros(3, samples))


@pytest.mark.parametrize("scale", SCALES)
def test_every_group_has_mean_zero_and_ignores_its_offset(scale: Scale) -> None:
    """An easy text gets no more than a hard one."""
    rewards = torch.randn(5, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    advantages = group_advantages(rewards, scale)
    torch.testing.assert_close(advantages.mean(dim=1), torch.zeros(5, dtype=torch.float64), atol=1e-12, rtol=0)
    shifted = rewards + torch.arange(5)[:, None] * 10.0
    torch.testing.assert_close(group_advantages(shifted, scale), advantages, atol=1e-9, rtol=0)


@pytest.mark.parametrize("scale", ["group_std", "batch_std"])
def test_scaled_advantages_ignore_the_unit_of_rewards(scale: Scale) -> None:
    """Temperature then only moves the rewards against the truncation value."""
    rewards = torch.randn(5, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(
        group_advantages(10 * rewards, scale), group_advantages(rewards, scale), atol=0, rtol=1e-3
    )


def test_rounding_noise_is_not_scaled_up() -> None:
    """Rewards that differ in float32's last digit stay near zero."""
    rewards = torch.tensor([[10.0, 10.0 + 1e-6, 10.0, 10.0]])
    assert group_advantages(rewards, "group_std").abs().max() < 0.02


def test_batch_std_keeps_the_groups_relative_weight() -> None:
    """A group that spreads three times as wide weighs three times as much; group_std levels them."""
    spread = {scale: group_advantages(REWARDS, scale)[:, 1] for scale in SCALES}
    assert (spread["batch_std"][1] / spread["batch_std"][0]).item() == pytest.approx(3.0)
    assert (spread["group_std"][1] / spread["group_std"][0]).item() == pytest.approx(1.0, abs=1e-3)
