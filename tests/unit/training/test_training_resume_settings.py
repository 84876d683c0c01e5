from dataclasses import asdict, replace
from pathlib import Path

import pytest

from grace_exp.config.compose import compose_config
from grace_exp.config.root import GraceConfig
from grace_exp.errors import ConfigError, MissingResourceError
from grace_exp.training.resume import check_same_model, check_same_run, embedded_otherwise, find_checkpoint


def test_a_run_folder_means_its_newest_checkpoint_and_a_file_means_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    older, newer = (tmp_path / "run" / "checkpoints" / f"step-00000{step}.ckpt" for step in (2, 9))
    older.touch()
    newer.touch()
    assert find_checkpoint(str(tmp_path / "run")) == newer
    assert find_checkpoint(str(older)) == older
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_checkpoint("~/run") == newer
    with pytest.raises(MissingResourceError, match=r"'\S*nowhere': neither a checkpoint file nor a run folder with"):
        find_checkpoint(str(tmp_path / "nowhere"))


def test_what_changes_no_step_may_change(config: GraceConfig, tmp_path: Path) -> None:
    overrides = ["+experiment=demo_tiny", "job.steps=9", "name=other", "evaluation=demo", "logger=wandb"]
    other = compose_config([*overrides, "callbacks=debug", f"cache_dir={tmp_path}", "job.resume=x"], tmp_path / "other")
    check_same_run(asdict(config), other)


@pytest.mark.parametrize(
    "change",
    ["rollout.temperature=0.9", "prompt=paper", "data=wordnet_unsup", "+backbone.lora.rank=2", "job.batch_size=8"],
)
def test_what_changes_a_step_is_named(config: GraceConfig, tmp_path: Path, change: str) -> None:
    fitting = ["reward=paper_unsupervised"] if "unsup" in change else []
    other = compose_config(["+experiment=demo_tiny", change, *fitting], tmp_path)
    with pytest.raises(ConfigError, match=r"this is not the run that was interrupted\n") as raised:
        check_same_run(asdict(config), other)
    assert change.lstrip("+").partition("=")[0] in str(raised.value)


def test_steps_are_free_only_while_the_schedule_does_not_depend_on_them(config: GraceConfig) -> None:
    longer = replace(config, job=replace(config.job, steps=99))
    check_same_run(asdict(config), longer)
    falling = replace(longer, optim=replace(config.optim, schedule="cosine"))
    with pytest.raises(ConfigError, match=r"job\.steps: 5 in the checkpoint, 99 now"):
        check_same_run(asdict(falling) | {"job": asdict(config.job)}, falling)


def test_weights_go_into_the_model_they_come_from(config: GraceConfig, tmp_path: Path) -> None:
    elsewhere = compose_config(
        ["+experiment=demo_tiny", "data=wordnet_unsup", "reward=paper_unsupervised", "backbone.pooling.layer=1"],
        tmp_path,
    )
    check_same_model(asdict(config), elsewhere)
    other = compose_config(["+experiment=demo_tiny", "backbone=smollm2"], tmp_path)
    with pytest.raises(ConfigError, match=r"backbone\.source: 'tiny' in the checkpoint, 'embedded' now"):
        check_same_model(asdict(config), other)


def test_what_embeds_the_same_weights_otherwise_is_named(config: GraceConfig, tmp_path: Path) -> None:
    changes = [
        "rollout.anchor_rationales=false",
        "rollout.max_tokens=7",
        "backbone.pooling.layer=1",
        "job.batch_size=8",
    ]
    other = compose_config(["+experiment=demo_tiny", *changes], tmp_path)
    assert [line.partition(":")[0] for line in embedded_otherwise(asdict(config), other)] == [
        "backbone.pooling.layer",
        "rollout.anchor_rationales",
        "rollout.max_tokens",
    ]
    assert embedded_otherwise(asdict(config), replace(config, job=replace(config.job, steps=99))) == []
