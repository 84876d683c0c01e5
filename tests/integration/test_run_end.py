"""A run that was killed after its last step is ended by `job.resume`; one that has ended says so."""

import filecmp
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback
from transformers import PreTrainedModel

from grace_exp.jobs import run_end
from grace_exp.tracking.metrics_csv import TIMED_PREFIXES
from grace_exp.training.callbacks import heldout_evaluation
from grace_exp.training.model_card import without_times

SETTINGS = [
    "job.steps=2",
    "+backbone.lora.rank=4",
    "+backbone.lora.dropout=0.2",
    "callbacks.export=[merged,adapter]",
    "evaluation=demo",
    "~evaluation.sets.stsb",
    "evaluation.sets.wordnet.size=8",
    "evaluation.minilm=false",
]


class Cut(Exception):
    """Simulates a power cut."""


def cut(*_: Any, **__: Any) -> None:
    raise Cut


def half_an_export(model: Any, folder: str, **_: Any) -> None:
    (Path(folder) / "config.json").write_text("{")
    raise Cut


CUTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "in the evaluation": lambda patch: patch.setattr(heldout_evaluation, "write_results", cut),
    "behind the evaluation": lambda patch: patch.setattr(heldout_evaluation.HeldoutEvaluation, "_log", cut),
    "in the summary": lambda patch: patch.setattr(run_end, "write_summary", cut),
    "in an export": lambda patch: patch.setattr(PreTrainedModel, "save_pretrained", half_an_export),
    "before the result": lambda patch: patch.setattr(run_end, "write_result", cut),
}


@pytest.fixture(scope="module")
def undisturbed(train):
    return train(*SETTINGS)


def assert_ended_as(folder: Path, other: Path) -> None:
    exported = sorted(path.relative_to(other) for path in (other / "export").rglob("*") if path.is_file())
    assert exported == sorted(path.relative_to(folder) for path in (folder / "export").rglob("*") if path.is_file())
    cards = [path for path in exported if path.name == "README.md"]
    others = [str(path) for path in exported if path not in cards]
    assert filecmp.cmpfiles(folder, other, others, shallow=False)[1:] == ([], [])
    for card in cards:
        found, expected = ((run / card).read_text(encoding="utf-8") for run in (folder, other))
        assert without_times(found) == without_times(expected)
    results = [json.loads((run / "result.json").read_text())["figures"] for run in (folder, other)]
    untimed = [{name: value for name, value in r.items() if not name.startswith(TIMED_PREFIXES)} for r in results]
    assert untimed[0] == untimed[1] and any(name.startswith("val/") for name in untimed[0])
    summaries = [json.loads((run / "summary.json").read_text()) for run in (folder, other)]
    for key in ("heldout", "reward_per_step", "loss_per_step", "steps"):
        assert summaries[0][key] == summaries[1][key]


@pytest.mark.parametrize("where", CUTS)
def test_a_run_killed_at_its_end_is_ended(train, undisturbed, monkeypatch, tmp_path: Path, where: str) -> None:
    class AfterTheLastStep(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 1:
                CUTS[where](monkeypatch)

    with pytest.raises(Cut):
        train(*SETTINGS, folder=tmp_path, callbacks=(AfterTheLastStep(),))
    monkeypatch.undo()
    assert not (tmp_path / "result.json").exists()
    train(*SETTINGS, f"job.resume={tmp_path}", folder=tmp_path / "not-used")
    run = type(undisturbed)(tmp_path)
    run.assert_continues_as(undisturbed)
    assert_ended_as(tmp_path, undisturbed.path)
    assert not list(tmp_path.rglob(".*.tmp"))


def test_a_run_that_has_ended_shows_its_report_and_loads_nothing(
    train, undisturbed, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from grace_exp.jobs import train as job

    monkeypatch.setattr(job, "assemble", cut)
    before = {path: path.stat().st_mtime_ns for path in undisturbed.path.rglob("*")}
    capsys.readouterr()
    train(*SETTINGS, f"job.resume={undisturbed.path}")
    out = capsys.readouterr().out
    assert "this run has ended; this is its report" in out and "Held-out, 95 % bootstrap intervals" in out
    assert out.count("Model: ") == 2 and "  after   " in out
    assert before == {path: path.stat().st_mtime_ns for path in undisturbed.path.rglob("*")}


def test_what_is_asked_for_anew_is_done_and_the_rest_is_kept(train, tmp_path: Path) -> None:
    train("job.steps=1", folder=tmp_path)
    summary = (tmp_path / "summary.json").stat().st_mtime_ns
    train("job.steps=1", "callbacks.export=[merged]", f"job.resume={tmp_path}")
    assert (tmp_path / "export" / "merged" / "model.safetensors").is_file()
    assert (tmp_path / "summary.json").stat().st_mtime_ns == summary
    sets = ["evaluation=demo", "~evaluation.sets.stsb", "evaluation.sets.wordnet.size=6", "evaluation.minilm=false"]
    train("job.steps=1", *sets, f"job.resume={tmp_path}")
    assert "after" in json.loads((tmp_path / "summary.json").read_text())["table"]["wordnet"]


def test_more_steps_take_back_what_the_end_had_left(train, tmp_path: Path) -> None:
    train(*SETTINGS, folder=tmp_path)

    class AtTheStart(Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            left = {name for name in ("result.json", "summary.json", "end.json", "evaluation/after.json")}
            assert not any((tmp_path / name).exists() for name in left)
            raise Cut

    with pytest.raises(Cut):
        train(*SETTINGS, "job.steps=3", f"job.resume={tmp_path}", callbacks=(AtTheStart(),))
