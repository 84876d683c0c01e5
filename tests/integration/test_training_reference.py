"""The reference model: absent where nothing asks for it, fixed where it is."""

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from grace_exp.policy.policy import Policy

PLAIN = ["hardware.one_pass=false", "hardware.keep_forward=false"]  # each forward is one
SETTINGS = ["job.steps=3", "objective.mini_batch_size=4", "optim.learning_rate=0.01", *PLAIN]
LORA = ["+backbone.lora.rank=4"]


class Watch(Callback):
    """Keeps the module, and counts forwards with and without gradients."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.module = pl_module

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.forwards = {True: 0, False: 0}
        forward = Policy.forward

        def counted(policy: Policy, *args: Any, **options: Any) -> Any:
            self.forwards[torch.is_grad_enabled()] += 1
            return forward(policy, *args, **options)

        monkeypatch.setattr(Policy, "forward", counted)


@pytest.mark.parametrize("lora", [[], LORA], ids=["full", "lora"])
def test_without_a_coefficient_there_is_no_reference_and_no_forward_for_it(train, monkeypatch, lora) -> None:
    watch = Watch(monkeypatch)
    run = train(*SETTINGS, *lora, callbacks=(watch,))
    assert watch.module.reference is None
    assert not any("reference" in name for name in watch.module.state_dict())
    # A step scores all sequences in two forwards (groups in rows of their own) and updates once, in one.
    assert watch.forwards == {True: 3, False: 6}
    assert "train/kl_reference" not in run.metrics


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("lora", [[], LORA], ids=["full", "lora"])
def test_with_a_coefficient_the_penalty_starts_at_zero_and_grows(train, monkeypatch, lora, estimator) -> None:
    watch = Watch(monkeypatch)
    kl = ["objective.kl.coefficient=0.1", f"objective.kl.estimator={estimator}"]
    run = train(*SETTINGS, *lora, *kl, callbacks=(watch,))
    assert watch.forwards == {True: 3, False: 9}
    values = run.figure("train/kl_reference")
    assert values[0] == pytest.approx(0, abs=1e-6)
    assert abs(values[1]) > 1e-4 and abs(values[2]) > 1e-4
    assert run.figure("train/loss")[2] == pytest.approx(run.figure("train/surrogate")[2] + 0.1 * values[2], abs=1e-6)
    assert not any("reference" in name for name in run.weights)


def test_the_penalty_holds_the_policy_back(train) -> None:
    kl = [
        train(*SETTINGS, "job.steps=6", f"objective.kl.coefficient={coefficient}").figure("train/kl_reference")[-1]
        for coefficient in (1e-9, 10)
    ]
    assert kl[1] < kl[0] / 2


@pytest.mark.parametrize("lora", [[], LORA], ids=["full", "lora"])
def test_a_resumed_run_keeps_the_reference_of_its_beginning(train, lora, tmp_path) -> None:
    settings = [*SETTINGS, *lora, "objective.kl.coefficient=0.1"]
    whole = train(*settings)
    train(*settings, "job.steps=1", folder=tmp_path)
    train(*settings, f"job.resume={tmp_path}", folder=tmp_path).assert_continues_as(whole)
