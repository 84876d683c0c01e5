import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from grace_exp.config.compose import compose_config
from grace_exp.training.callbacks import mismatch_warning
from grace_exp.training.callbacks.mismatch_warning import MismatchWarning


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(mismatch_warning, "step_module", lambda module: module)
    return []


def step(callback: MismatchWarning, row: dict[str, float], *, first: bool = True) -> None:
    trainer: Any = SimpleNamespace(is_global_zero=first)
    module: Any = SimpleNamespace(history=[{"step": 3, **row}])
    callback.on_train_batch_end(trainer, module)


def made(said: list[str], *overrides: str) -> MismatchWarning:
    def warn(step: int, kind: str, message: str) -> None:
        assert (step, kind) == (3, "mismatch")
        said.append(message)

    return MismatchWarning(compose_config(["+experiment=demo_tiny", *overrides], Path("run")), warn)


def test_an_engine_that_moves_away_is_told_once_with_what_mends_it(said: list[str]) -> None:
    callback = made(said, "rollout=vllm")
    step(callback, {"mismatch/ess_sequence": 0.9})
    assert said == []
    for figure in (0.15, 0.1):
        step(callback, {"mismatch/ess_sequence": figure})
    (message,) = said
    assert message.startswith("mismatch/ess_sequence = 0.15 is below objective.importance.warn_below=0.2: ")
    assert "objective.importance.mode=token" in message and "rollout.vllm.dtype=float32" in message


def test_a_correction_that_is_on_is_not_advised(said: list[str]) -> None:
    step(made(said, "rollout=vllm", "objective.importance.mode=token"), {"mismatch/ess_sequence": 0.1})
    assert "mode=token" not in said[0] and "rollout.vllm.probe=true" in said[0]


def test_steps_without_a_figure_other_processes_and_a_threshold_of_nothing_say_nothing(said: list[str]) -> None:
    callback = made(said)
    step(callback, {})
    step(callback, {"mismatch/ess_sequence": math.nan})
    step(callback, {"mismatch/ess_sequence": 0.1}, first=False)
    step(made(said, "objective.importance.warn_below=0"), {"mismatch/ess_sequence": 0.0})
    assert said == []
