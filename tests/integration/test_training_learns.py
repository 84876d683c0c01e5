"""Training works: the reward rises, only the policy gradient raises it, and all trained weights change."""

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from grace_exp.policy.tiny import tiny_model
from grace_exp.training.step import rewards

# Embeddings are read from the frozen input embeddings, where only the choice of tokens can change a reward. Read from
# hidden states that the updates change, a random model's rewards rise whatever the sign of the advantages: its
# embeddings fall together.
SETTINGS = [
    "job.steps=25",
    "job.batch_size=4",
    "rollout.group_size=8",
    "reward.terms.negative=null",
    "reward.terms.consistency=null",
    "reward.terms.hard_negative=null",
    "optim.learning_rate=0.01",
    "+backbone.lora.rank=8",
    "+backbone.lora.alpha=16",
    "backbone.pooling.layer=0",
    "backbone.pooling.region=rationale",
    "callbacks.checkpoint.every_n_steps=0",
    "logger.samples_every_n_steps=0",
]


def rise(rewards: list[float]) -> tuple[float, float]:
    """Mean of the last fifth minus mean of the first, in units of reward and of its standard error."""
    fifth = len(rewards) // 5
    first, last = np.array(rewards[:fifth]), np.array(rewards[-fifth:])
    error = np.sqrt((first.var(ddof=1) + last.var(ddof=1)) / fifth)
    return last.mean() - first.mean(), (last.mean() - first.mean()) / error


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_reward_rises_by_more_than_its_noise(train, seed: int) -> None:
    run = train(*SETTINGS, f"seed={seed}")
    points, errors = rise(run.figure("reward/total/mean"))
    # The reward is ten times a cosine, near 0 for random tokens. Noise alone goes beyond 4 standard errors in 4 of 1000
    # runs (Student's t with 8 degrees of freedom).
    assert points > 2 and errors > 4


def test_it_does_not_rise_when_advantages_are_negated(train, monkeypatch: pytest.MonkeyPatch) -> None:
    advantages = rewards.compute_advantages
    monkeypatch.setattr(rewards, "compute_advantages", lambda *args: -advantages(*args))
    points, _ = rise(train(*SETTINGS).figure("reward/total/mean"))
    assert points < 0.5


@pytest.mark.parametrize("lora", [[], ["+backbone.lora.rank=4"]], ids=["full", "lora"])
def test_every_trainable_parameter_moves(train, lora: list[str]) -> None:
    settings = ["callbacks.checkpoint.every_n_steps=1", "callbacks.checkpoint.keep=9", "optim.weight_decay=0", *lora]
    run = train("job.steps=3", *settings)
    first, last = (
        torch.load(run.path / "checkpoints" / f"step-00000{step}.ckpt", weights_only=True)["state_dict"]
        for step in (1, 3)
    )
    # LoRA's B starts at zero, so A has no gradient in the first update.
    assert [name for name, weight in last.items() if torch.equal(weight, first[name])] == []
    expected = {"lora_A", "lora_B"} if lora else {"embed_tokens", "q_proj", "down_proj", "norm", "layernorm"}
    assert all(any(part in name for name in last) for part in expected)
    if lora:
        assert all("lora_" in name for name in last)
        assert len(last) == 2 * 2 * 7  # A and B of seven linear layers in two blocks
        assert all(weight.any() for weight in last.values())


def test_the_frozen_weights_under_adapters_stay(train) -> None:
    seen = {}

    class Keep(Callback):
        def on_train_end(self, trainer, pl_module) -> None:
            seen.update(pl_module.policy.causal_lm.state_dict())

    train("job.steps=2", "+backbone.lora.rank=4", "optim.learning_rate=0.01", callbacks=(Keep(),))
    for name, weight in tiny_model(seed=0).state_dict().items():
        *path, leaf = name.split(".")
        found = seen.get(name, seen.get(".".join([*path, "base_layer", leaf])))
        assert torch.equal(found, weight), name
