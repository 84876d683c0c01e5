"""A run that was interrupted and resumed equals an uninterrupted run."""

import json
import re
import signal
from pathlib import Path

import pandas as pd
import pytest
import torch
from lightning.pytorch import Callback

from grace_exp.errors import ConfigError, MissingResourceError
from grace_exp.training.checkpoints import Interrupted

EVERY = "callbacks.checkpoint.every_n_steps=1"
STEPS = ["job.steps=4", "job.batch_size=4", "objective.mini_batch_size=2"]
SETTINGS = {
    "full": [*STEPS, "optim.schedule=linear", "optim.warmup_steps=3", "optim.learning_rate=0.003"],
    "lora": [*STEPS, "+backbone.lora.rank=4", "+backbone.lora.dropout=0.3", "optim.schedule=cosine"],
}


class PowerCut(Callback):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        if trainer.global_step == 5:  # in the third step, between its two updates
            raise MemoryError("cut")


@pytest.fixture(scope="module", params=list(SETTINGS))
def settings(request: pytest.FixtureRequest) -> list[str]:
    return SETTINGS[request.param]


@pytest.fixture(scope="module")
def uninterrupted(train, settings: list[str]):
    return train(*settings)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_stopped_by_a_signal_and_resumed(train, settings, uninterrupted, step: int, tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match=re.escape(f"job.resume={tmp_path}")) as raised:
        train(*settings, folder=tmp_path, signal_in=step)
    saved = tmp_path / "checkpoints" / f"step-{step:06d}.ckpt"
    assert f"stopped by SIGTERM after step {step} of 4; saved {saved}\n" in str(raised.value) and saved.is_file()
    assert not (tmp_path / "summary.json").exists()

    resumed = train(*settings, f"job.resume={tmp_path}", folder=tmp_path / "not-used")
    assert resumed.path == tmp_path / "not-used" and not resumed.path.exists()
    type(resumed)(tmp_path).assert_continues_as(uninterrupted)


def test_dropout_and_mini_batches_act_in_these_comparisons(train, settings, uninterrupted) -> None:
    lora = any("lora" in setting for setting in settings)
    without = train(*settings, "backbone.lora.dropout=0" if lora else "objective.mini_batch_size=4")
    assert any(not torch.equal(without.weights[name], weight) for name, weight in uninterrupted.weights.items())


def test_cut_short_within_a_step_and_resumed_from_the_last_checkpoint(train, uninterrupted, settings, tmp_path) -> None:
    with pytest.raises(MemoryError, match="cut"):
        train(*settings, "callbacks.checkpoint.every_n_steps=2", folder=tmp_path, callbacks=(PowerCut(),))
    run = train(*settings, f"job.resume={tmp_path}", folder=tmp_path)
    run.assert_continues_as(uninterrupted)


def test_resumed_from_an_older_checkpoint_the_younger_ones_go(train, uninterrupted, settings, tmp_path) -> None:
    train(*settings, EVERY, "callbacks.checkpoint.keep=4", folder=tmp_path)
    older = tmp_path / "checkpoints" / "step-000002.ckpt"
    run = train(*settings, "callbacks.checkpoint.keep=1", f"job.resume={older}", folder=tmp_path)
    run.assert_continues_as(uninterrupted)
    assert run.checkpoints == ["step-000004.ckpt"]


def test_a_signal_in_the_last_step_lets_the_run_end(train, settings, uninterrupted) -> None:
    run = train(*settings, "callbacks.export=[merged]", signal_in=4, number=signal.SIGINT)
    run.assert_continues_as(uninterrupted)
    assert (run.path / "summary.json").is_file() and (run.path / "export" / "merged" / "model.safetensors").is_file()


def test_signals_are_given_back(train) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted):
        train("job.steps=2", signal_in=1)
    train("job.steps=1")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_more_steps_for_an_unfinished_run(train, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train("job.steps=3", folder=tmp_path, signal_in=2)
    longer = train("job.steps=5", f"job.resume={tmp_path}", folder=tmp_path)
    longer.assert_continues_as(train("job.steps=5"))


@pytest.mark.parametrize("lora", [[], ["+backbone.lora.rank=4", "+backbone.lora.dropout=0.2"]], ids=["full", "lora"])
def test_more_steps_for_a_finished_run(train, lora: list[str], tmp_path: Path) -> None:
    short = train("job.steps=2", "callbacks.export=[merged]", *lora, folder=tmp_path)
    assert len(short.metrics) == 2
    longer = train("job.steps=4", *lora, f"job.resume={tmp_path}", folder=tmp_path)
    longer.assert_continues_as(train("job.steps=4", *lora))
    assert longer.metrics["step"].tolist() == ["0", "1", "2", "3"]


def test_steps_cannot_be_added_to_a_schedule_that_ends_with_them(train, tmp_path: Path) -> None:
    train("job.steps=1", "optim.schedule=linear", folder=tmp_path)
    with pytest.raises(ConfigError, match=r"job\.steps: 1 in the checkpoint, 2 now \(optim\.schedule depends on it\)"):
        train("job.steps=2", "optim.schedule=linear", f"job.resume={tmp_path}", folder=tmp_path)


def test_fewer_steps_than_are_done_are_refused(train, tmp_path: Path) -> None:
    train("job.steps=2", folder=tmp_path)
    with pytest.raises(ConfigError, match=r"step-000002\.ckpt has done 2 steps, and job\.steps=1; say job\.steps=2"):
        train("job.steps=1", f"job.resume={tmp_path}", folder=tmp_path)


def test_other_settings_are_refused_and_named(train, tmp_path: Path) -> None:
    train("job.steps=1", folder=tmp_path)
    with pytest.raises(ConfigError) as raised:
        train("job.steps=2", f"job.resume={tmp_path}", "seed=3", "reward.temperature=0.5", "logger.samples_per_step=1")
    assert str(raised.value).splitlines()[1:] == [
        "  reward.temperature: 0.1 in the checkpoint, 0.5 now",
        "  seed: 0 in the checkpoint, 3 now",
    ]


def test_changed_data_are_refused(train, tmp_path: Path) -> None:
    lines = [json.dumps({key: f"{key} {i}" for key in ("query", "positive", "negative")}) + "\n" for i in range(4)]
    file = tmp_path / "rows.jsonl"
    data = ["data=triplets", f"data.sources.file.path={file}", "job.batch_size=2", "objective.mini_batch_size=2"]
    file.write_text("".join(lines))
    train("job.steps=1", *data, folder=tmp_path / "run")
    file.write_text("".join(lines[:3]))
    with pytest.raises(ConfigError, match=r"cannot be resumed with this data.*data fingerprint was"):
        train("job.steps=2", *data, f"job.resume={tmp_path / 'run'}", folder=tmp_path / "run")


def test_a_damaged_checkpoint_is_an_error_that_names_it(train, tmp_path: Path) -> None:
    run = train("job.steps=1", folder=tmp_path)
    path = tmp_path / "checkpoints" / run.checkpoints[0]
    whole = path.read_bytes()
    middle = len(whole) // 2
    hole = whole[:middle] + bytes(64) + whole[middle + 64 :]
    for content in (whole[:middle], whole[:-10], b"", b"hello\n", hole):
        path.write_bytes(content)
        with pytest.raises(
            MissingResourceError, match=r"step-000001\.ckpt is not a checkpoint of grace-exp, or is damaged"
        ):
            train("job.steps=2", f"job.resume={tmp_path}", folder=tmp_path)
    for content in ({"state_dict": {}}, [1], {"grace": PowerCut}):
        torch.save(content, path)
        with pytest.raises(MissingResourceError, match="is not a checkpoint of grace-exp"):
            train("job.steps=2", f"job.resume={tmp_path}", folder=tmp_path)


def test_a_folder_without_a_run_is_an_error(train, tmp_path: Path) -> None:
    with pytest.raises(MissingResourceError, match="neither a checkpoint file nor a run folder"):
        train("job.steps=2", f"job.resume={tmp_path}")


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(train, tmp_path: Path) -> None:
    class Cut(Callback):
        def on_train_batch_end(self, *_: object) -> None:
            raise MemoryError("cut")

    with pytest.raises(MemoryError):
        train("job.steps=2", folder=tmp_path, callbacks=(Cut(),))
    run = train("job.steps=2", f"job.resume={tmp_path}", folder=tmp_path / "not-used")
    type(run)(tmp_path).assert_continues_as(train("job.steps=2"))
    with pytest.raises(ConfigError, match=r"seed: 0 in the checkpoint, 3 now"):
        train("job.steps=2", "seed=3", f"job.resume={tmp_path}")


def test_a_checkpoint_outside_its_run_folder_is_an_error(train, tmp_path: Path) -> None:
    run = train("job.steps=1", folder=tmp_path / "run")
    copied = tmp_path / "copy.ckpt"
    copied.write_bytes((run.path / "checkpoints" / run.checkpoints[0]).read_bytes())
    with pytest.raises(MissingResourceError, match="is not in the folder checkpoints/ of a run"):
        train("job.steps=2", f"job.resume={copied}")


def test_links_lead_to_the_run_that_they_point_into(train, tmp_path: Path) -> None:
    disk, run, elsewhere = tmp_path / "disk", tmp_path / "run", tmp_path / "elsewhere" / "checkpoints"
    for folder in (disk / "of-run", run, elsewhere):
        folder.mkdir(parents=True)
    (run / "checkpoints").symlink_to(disk / "of-run")
    train("job.steps=1", folder=run)
    newest = run / "checkpoints" / "step-000001.ckpt"
    link = elsewhere / "latest.ckpt"
    link.symlink_to(newest)
    for steps, named in enumerate((link, newest, run), start=2):
        train(f"job.steps={steps}", "callbacks.checkpoint.keep=9", f"job.resume={named}", folder=tmp_path / "not-used")
        assert (run / "checkpoints" / f"step-00000{steps}.ckpt").is_file()
    assert not (tmp_path / "not-used").exists() and not list(elsewhere.parent.glob("*.csv"))
    newest = run / "checkpoints" / "step-000009.ckpt"
    newest.symlink_to(tmp_path / "gone")
    with pytest.raises(MissingResourceError, match="is not a checkpoint of grace-exp, or is damaged"):
        train("job.steps=9", f"job.resume={run}")


def test_held_out_figures_and_rewards_of_the_first_part_are_in_the_summary(train, tmp_path: Path) -> None:
    evaluation = [
        "evaluation=demo",
        "~evaluation.sets.stsb",
        "evaluation.sets.wordnet.size=8",
        "evaluation.minilm=false",
    ]
    with pytest.raises(Interrupted):
        train("job.steps=3", *evaluation, folder=tmp_path, signal_in=1)
    resumed = train("job.steps=3", *evaluation, f"job.resume={tmp_path}", folder=tmp_path)
    whole = train("job.steps=3", *evaluation)
    pd.testing.assert_frame_equal(resumed.metrics, whole.metrics)
    summaries = [json.loads((run.path / "summary.json").read_text()) for run in (resumed, whole)]
    for key in ("heldout", "reward_per_step", "steps", "skipped_updates"):
        assert summaries[0][key] == summaries[1][key]
    assert {"before", "after", "rise"} <= summaries[0]["heldout"]["wordnet"].keys()
    assert summaries[0]["seconds"].keys() == summaries[1]["seconds"].keys()


def test_the_wandb_run_goes_on_and_a_new_run_gets_its_own(
    train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        train("job.steps=2", "logger=wandb", folder=folder, signal_in=1)
    first = (folder / "wandb_run_id.txt").read_text().strip()
    train("job.steps=2", "logger=wandb", f"job.resume={folder}", folder=folder)
    assert (folder / "wandb_run_id.txt").read_text().strip() == first
    assert len(list(folder.glob(f"wandb/offline-run-*/run-{first}.wandb"))) == 2

    with pytest.raises(MemoryError):
        train(*STEPS, "logger=wandb", folder=tmp_path / "other", callbacks=(PowerCut(),))
    first = (tmp_path / "other" / "wandb_run_id.txt").read_text().strip()
    train("job.steps=1", "logger=wandb", folder=tmp_path / "other")
    folder = tmp_path / "other"
    assert (folder / "wandb_run_id.txt").read_text().strip() != first
