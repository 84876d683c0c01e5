from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from grace_exp.config.backbone import BackboneConfig, LoraConfig
from grace_exp.policy.average import MovingAverage
from grace_exp.policy.load_backbone import load_backbone
from grace_exp.policy.packing import TextSequence
from grace_exp.policy.policy import Policy

Make = Callable[..., Policy]
Sequences = Callable[..., list[TextSequence]]


@pytest.fixture(params=["full", "lora"])
def start(request: pytest.FixtureRequest, tmp_path: Path, policy: Make) -> Policy:
    """A policy before its first update."""
    lora = LoraConfig(rank=4) if request.param == "lora" else None
    config = BackboneConfig(name="tiny", source="tiny", lora=lora)
    return policy(load_backbone(config, cache_dir=tmp_path, seed=0, dtype=torch.float32).model)


@torch.no_grad()
def move(policy: Policy, by: float) -> None:
    for parameter in policy.trainable_parameters():
        parameter.add_(by)


def test_the_average_is_exponential(start: Policy) -> None:
    average = MovingAverage(start, decay=0.75)
    first = [weight.clone() for weight in average.weights]
    for _ in range(2):
        move(start, 1.0)
        average.update()
    # w + 1/4, then 3/4 (w + 1/4) + 1/4 (w + 2) = w + 11/16
    torch.testing.assert_close(list(average.weights), [weight + 11 / 16 for weight in first])
    assert len(average.weights) == len(start.trainable_parameters())


def test_it_embeds_with_its_own_weights_and_puts_the_policy_s_back(start: Policy, sequences: Sequences) -> None:
    asked = sequences([[3, 1], [5]])
    average = MovingAverage(start, decay=0.5)
    before = start.embed(asked)["text_and_rationale"]
    move(start, 0.1)
    moved = [weight.clone() for weight in start.trainable_parameters()]
    torch.testing.assert_close(average.embed(asked)["text_and_rationale"], before, rtol=0, atol=0)
    torch.testing.assert_close(start.trainable_parameters(), moved, rtol=0, atol=0)
    now = start.embed(asked)["text_and_rationale"]
    assert (now - before).abs().max() > 1e-3
    average.update()
    between = average.embed(asked)["text_and_rationale"]
    assert (between - before).abs().max() > 1e-3 and (between - now).abs().max() > 1e-3


def test_without_memory_it_is_the_policy(start: Policy, sequences: Sequences) -> None:
    average = MovingAverage(start, decay=0.0)
    move(start, 0.1)
    average.update()
    asked = sequences([[3], [5]])
    torch.testing.assert_close(average.embed(asked), start.embed(asked), rtol=0, atol=0)


def test_its_state_is_its_weights_and_none_of_them_is_trained(start: Policy) -> None:
    average, other = MovingAverage(start, 0.9), MovingAverage(start, 0.9)
    move(start, 1.0)
    average.update()
    other.load_state_dict(average.state_dict())
    torch.testing.assert_close(list(other.weights), list(average.weights), rtol=0, atol=0)
    assert not any(parameter.requires_grad for parameter in average.parameters())
