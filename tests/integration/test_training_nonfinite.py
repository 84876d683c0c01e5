"""A loss or gradient that is nan or inf stops the run with the batch saved, or is left out and counted."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from grace_exp.objective import ALGORITHMS
from grace_exp.tracking.run_warnings import read_warnings
from grace_exp.training.step.nonfinite import NonFiniteError

SETTINGS = [
    "job.steps=4",
    "job.batch_size=4",
    "objective.mini_batch_size=2",
    "callbacks.checkpoint.every_n_steps=1",
    "callbacks.checkpoint.keep=9",
]
PARAMETER = "model.model.layers.1.mlp.up_proj.weight"


class BadGradient(Callback):
    """Spoils one parameter's gradient in the first update of the second step."""

    def __init__(self, value: float) -> None:
        self.value = value
        self.update = 0
        self.module: Any = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.module = pl_module
        parameter = dict(pl_module.policy.named_parameters())[PARAMETER]
        parameter.register_post_accumulate_grad_hook(self.spoil)

    def spoil(self, parameter: torch.Tensor) -> None:
        self.update += 1
        if self.update == 3:
            assert parameter.grad is not None
            parameter.grad[0, 0] = self.value


@pytest.fixture
def bad_loss(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes the loss of one update nan, without a bad gradient."""

    def spoil(update: int) -> None:
        algorithm, calls = ALGORITHMS["grpo"], iter(range(1, 1000))

        def spoilt(inputs: Any, config: Any) -> Any:
            value, metrics = algorithm.loss(inputs, config)
            return (value + math.nan, metrics) if next(calls) == update else (value, metrics)

        monkeypatch.setitem(ALGORITHMS, "grpo", replace(algorithm, loss=spoilt))

    return spoil


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_gradient_stops_the_run_with_step_parameter_and_batch(train, tmp_path, value: float) -> None:
    bad = BadGradient(value)
    with pytest.raises(NonFiniteError) as raised:
        train(*SETTINGS, folder=tmp_path, callbacks=(bad,))
    (path,) = (tmp_path / "nonfinite").iterdir()
    assert path.name == "step-000001-instance-0-rank-0.json"
    message = str(raised.value)
    assert message.startswith("step 1: loss ") and f"first in {PARAMETER}." in message and str(path) in message

    kept = json.loads(path.read_text())
    assert kept["parameter"] == PARAMETER and kept["grad_norm"] == str(value) and math.isfinite(float(kept["loss"]))
    assert len(kept["rollouts"]) == 6  # two instances of the mini-batch, K = 3
    for rollout in kept["rollouts"]:
        assert len(rollout["old_logprobs"]) == len(rollout["completion_ids"]) > 0
        assert rollout["text"] and rollout["prompt_ids"] and math.isfinite(float(rollout["advantage"]))

    before = torch.load(tmp_path / "checkpoints" / "step-000001.ckpt", weights_only=True)["state_dict"]
    now = bad.module.state_dict()
    assert all(torch.equal(now[name], weight) for name, weight in before.items())
    assert not (tmp_path / "summary.json").exists()


def test_a_bad_gradient_is_skipped_and_counted(train, tmp_path) -> None:
    run = train(*SETTINGS, "optim.on_nonfinite=skip", folder=tmp_path, callbacks=(BadGradient(math.nan),))
    assert run.figure("train/skipped_updates") == [0, 1, 1, 1]
    # Figures are means over the updates that were made, of which the second step has one.
    assert all(math.isfinite(value) for name in ("train/grad_norm", "train/loss") for value in run.figure(name))
    assert [path.name for path in (tmp_path / "nonfinite").iterdir()] == ["step-000001-instance-0-rank-0.json"]
    assert all(bool(torch.isfinite(weight).all()) for weight in run.weights.values())
    # The step's second update was made: the weights are not those of step 1.
    first, second = (
        torch.load(tmp_path / "checkpoints" / f"step-00000{step}.ckpt", weights_only=True) for step in (1, 2)
    )
    assert not torch.equal(first["state_dict"]["policy." + PARAMETER], second["state_dict"]["policy." + PARAMETER])
    assert second["global_step"] - first["global_step"] == 1
    assert json.loads((tmp_path / "summary.json").read_text())["skipped_updates"] == 1
    (warning,) = read_warnings(tmp_path)
    assert (warning["step"], warning["kind"]) == (1, "skipped_updates") and "on_nonfinite=stop" in warning["message"]


def test_a_bad_loss_stops_the_run_though_gradients_are_finite(train, tmp_path, bad_loss) -> None:
    bad_loss(4)  # the second update of the second step
    with pytest.raises(NonFiniteError, match=r"^step 1: loss nan, gradient norm \d+\.\d+\. The update was not made\."):
        train(*SETTINGS, folder=tmp_path)
    (path,) = (tmp_path / "nonfinite").iterdir()
    assert path.name == "step-000001-instance-2-rank-0.json"
    assert json.loads(path.read_text())["parameter"] is None


def test_skipped_updates_are_counted_over_a_resume(train, tmp_path, bad_loss) -> None:
    bad_loss(1)
    train("job.steps=1", "optim.on_nonfinite=skip", folder=tmp_path)
    run = train("job.steps=2", "optim.on_nonfinite=skip", f"job.resume={tmp_path}", folder=tmp_path)
    assert run.figure("train/skipped_updates") == [1, 1]
    assert [warning["step"] for warning in read_warnings(tmp_path)] == [0]  # said once
