"""A continued run keeps the exports of its earlier end until it ends again; they never pass for its checkpoint's."""

from pathlib import Path
from typing import Any

import pytest

from grace_exp.config.compose import compose_config
from grace_exp.encoder.adaptive_rule import RULE_FILE, AdaptiveRule, write_rule
from grace_exp.errors import ConfigError, MissingResourceError
from grace_exp.jobs import run as run_job
from grace_exp.jobs.run_encoder import exports_of
from grace_exp.training.checkpoints import Interrupted

EXPORT = "callbacks.export=[merged]"
COMMON = ["+experiment=demo_tiny", "hardware=cpu", "hardware.threads=1", "callbacks.progress=none"]
COMMON += ["rollout.max_tokens=4", "evaluation=demo", "~evaluation.sets.stsb", "evaluation.sets.wordnet.size=4"]
COMMON += ["evaluation.minilm=false", "evaluation.bootstrap=20", "job.encode.cache_gib=0"]


def test_exports_older_than_the_checkpoint_are_not_taken_for_it(train: Any, tmp_path: Path) -> None:
    run: Path = train("job.steps=1", EXPORT, folder=tmp_path / "run").path
    export = run / "export" / "merged"
    write_rule(export, AdaptiveRule(weights=(0.0,) * 64, log_norm=0.0, document=0.0, bias=1.0, threshold=0.5))
    card = (export / "README.md").read_text()
    assert exports_of(str(run)) == [export]
    with pytest.raises(Interrupted):
        train("job.steps=3", EXPORT, f"job.resume={run}", signal_in=2)  # checkpoint of two steps, export of one
    assert export.is_dir() and exports_of(str(run)) == []

    (tmp_path / "texts.txt").write_text("A cat sleeps.\nRain in May\n")
    files = [f"job.input={tmp_path / 'texts.txt'}", f"cache_dir={tmp_path / 'cache'}", f"job.resume={run}"]
    embed = ["job=embed", "job.encode.mode=adaptive", f"job.output={tmp_path / 'v.npy'}"]
    with pytest.raises(ConfigError, match=r"mode=adaptive: the exports .* of step-000002\.ckpt: end the run .*resume="):
        run_job(compose_config([*COMMON, *embed, *files], tmp_path / "embed"))
    with pytest.raises(MissingResourceError, match=r"not known to be of step-000002\.ckpt"):
        run_job(compose_config([*COMMON, "job=fit_adaptive", *files], tmp_path / "fit"))
    controls = [*COMMON, "job=evaluate", f"job.resume={run}", "evaluation.controls=true"]
    run_job(compose_config([*controls, f"cache_dir={tmp_path / 'cache'}"], tmp_path / "controls"))
    assert (export / "README.md").read_text() == card

    train("job.steps=3", EXPORT, f"job.resume={run}")
    assert exports_of(str(run)) == [export] and not (export / RULE_FILE).exists()
    assert exports_of(str(run / "checkpoints" / "step-000002.ckpt")) == []


def test_exports_are_found_where_checkpoints_lie_on_another_disk(train: Any, tmp_path: Path) -> None:
    run: Path = train("job.steps=1", EXPORT, folder=tmp_path / "run").path
    (run / "checkpoints").rename(tmp_path / "disk")
    (run / "checkpoints").symlink_to(tmp_path / "disk")
    assert exports_of(str(run)) == [run / "export" / "merged"]
    assert exports_of(str(run / "checkpoints" / "step-000001.ckpt")) == [run / "export" / "merged"]
