"""Whole runs with an engine that records its calls: which calls it gets, and when it gives its memory back."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from grace_exp.config.compose import compose_config
from grace_exp.jobs import assemble, run_encoder
from grace_exp.jobs import run as run_job
from grace_exp.rollout.protocol import Completion, Request, RolloutEngine
from grace_exp.training.module import StepModule

HELDOUT = ["evaluation=demo", "~evaluation.sets.stsb", "evaluation.sets.wordnet.size=4", "evaluation.minilm=false"]
STEP = ["generate", "sleep", "update", "sync"]


class Recorder:
    """Records calls and passes them on."""

    def __init__(self, engine: RolloutEngine, calls: list[str]) -> None:
        self._engine = engine
        self._calls = calls

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        self._calls.append("generate")
        return self._engine.generate(requests)

    def sync(self, model: Any) -> None:
        self._calls.append("sync")
        self._engine.sync(model)

    def sleep(self) -> None:
        self._calls.append("sleep")
        self._engine.sleep()

    def close(self) -> None:
        self._calls.append("close")
        self._engine.close()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls to the run's engine, with the optimizer's updates between them."""
    made: list[str] = []
    build, update = assemble.build_engine, StepModule.update

    def recorded(*arguments: Any, **settings: Any) -> Recorder:
        return Recorder(build(*arguments, **settings), made)

    def updated(*arguments: Any) -> Any:
        made.append("update")
        return update(*arguments)

    monkeypatch.setattr(assemble, "build_engine", recorded)
    monkeypatch.setattr(run_encoder, "build_engine", recorded)
    monkeypatch.setattr(StepModule, "update", updated)
    return made


def test_the_engine_sleeps_from_a_steps_last_rationale_to_the_next_steps_first(train, calls: list[str]) -> None:
    train("job.steps=2", "objective.mini_batch_size=2", *HELDOUT, "evaluation.every_n_steps=1")
    measured = ["generate", "sleep"] * 2  # queries and documents
    step = ["generate", "sleep", "update", "update", "sync"]
    assert calls == [*measured, *step, *measured, *step, *measured, "close"]


def test_dynamic_sampling_writes_again_before_the_engine_sleeps(train, calls: list[str]) -> None:
    # A reward without any spread: every group is exchanged in every round.
    constant = ["reward.terms.positive.weight=0", "reward.terms.consistency=null", "reward.terms.hard_negative=null"]
    train("job.steps=1", *constant, "reward.terms.negative=null", "+objective.dynamic_sampling.max_rounds=2")
    assert calls == ["generate", "generate", "generate", "sleep", "update", "sync", "close"]


@pytest.mark.parametrize(
    ("method", "step"),
    [
        ("contrastive_on_rationales", ["generate", "sleep", "update"]),
        ("contrastive", ["sleep", "update", "sync"]),
        ("rejection_sft", STEP),
    ],
)
def test_so_it_does_in_every_method(train, calls: list[str], method: str, step: list[str]) -> None:
    train("job.steps=1", f"method={method}")
    assert calls == [*step, "close"]


def test_embedding_writes_batch_by_batch_and_sleeps_once_at_the_end(calls: list[str], tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("one text\nanother text\na third text\n")
    overrides = ["job=embed", "job.model=tiny", f"job.input={texts}", f"job.output={tmp_path / 'vectors.npy'}"]
    overrides += ["job.encode.batch_size=2", "job.encode.max_tokens=4", f"cache_dir={tmp_path}", "hardware=cpu"]
    run_job(compose_config([*overrides, "callbacks.progress=none"], tmp_path / "run"))
    assert calls == ["generate", "generate", "sleep", "close"]
