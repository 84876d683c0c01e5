from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from grace_exp.config.compose import compose_config
from grace_exp.training.callbacks import inert_terms
from grace_exp.training.callbacks.inert_terms import InertTermsWarning


def steps(callback: InertTermsWarning, row: dict[str, float], count: int, *, first: bool = True) -> None:
    trainer: Any = SimpleNamespace(is_global_zero=first)
    module: Any = SimpleNamespace(history=[row])
    for _ in range(count):
        callback.on_train_batch_end(trainer, module)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(inert_terms, "step_module", lambda module: module)
    return []


def into(said: list[str]) -> Callable[[int, str, str], None]:
    return lambda step, kind, message: said.append(message)


def row(share: float, side: str = "") -> dict[str, float]:
    terms = ("positive", "negative", "consistency", "hard_negative")
    figures = {f"{side}reward/{name}/advantage_share": share if "negative" in name else 0.5 for name in terms}
    figures |= {f"{side}reward/{name}/within_group_std": share for name in terms}
    return figures | {"reward/zero_spread_share": 0.0, "step": 0.0}


def test_a_term_without_share_is_announced_once(said: list[str], tmp_path: Path) -> None:
    callback = InertTermsWarning(compose_config(["+experiment=demo_tiny"], tmp_path), into(said))
    steps(callback, row(0.0), 9)
    assert said == []
    steps(callback, row(0.0), 30)
    assert [text.split()[0] for text in said] == ["reward.terms.negative", "reward.terms.hard_negative"]


def test_of_two_sides_it_is_said_which(said: list[str], tmp_path: Path) -> None:
    config = compose_config(["+experiment=demo_tiny", "rollout.policy_role=both"], tmp_path)
    callback = InertTermsWarning(config, into(said))
    steps(callback, row(0.0, "positive/") | row(0.3, "query/"), 30)
    assert [text.split()[:2] for text in said] == [
        ["positive:", "reward.terms.negative"],
        ["positive:", "reward.terms.hard_negative"],
    ]


def test_other_processes_and_steps_without_reward_say_nothing(said: list[str], tmp_path: Path) -> None:
    callback = InertTermsWarning(compose_config(["+experiment=demo_tiny"], tmp_path), into(said))
    steps(callback, row(0.0), 30, first=False)
    steps(callback, {"train/loss": 1.0}, 30)
    assert said == []
