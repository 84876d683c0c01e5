"""An offline W&B run, read back with wandb's own reader."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from grace_exp.config.compose import compose_config
from grace_exp.config.root import GraceConfig
from grace_exp.tracking.samples import SamplesTable
from grace_exp.tracking.wandb_logger import build_wandb_logger, finishing, stored_run_id

ROW = {
    "instance": 0,
    "source": "wordnet",
    "role": "positive",
    "text": "a text",
    "prompt_tokens": 12,
    "rationale": "because",
    "rationale_tokens": 1,
    "finish_reason": "stop",
}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GraceConfig:
    """A run without a login; W&B's artifact cache stays out of the home folder."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    return compose_config(["+experiment=demo_tiny", "logger=wandb"], tmp_path / "run")


def records(path: Path) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def history(path: Path) -> list[dict[str, Any]]:
    return [record["history"]["item"] for record in records(path) if record["type"] == "history"]


def run_files(config: GraceConfig) -> list[Path]:
    return sorted(Path(config.run_dir).glob("wandb/offline-run-*/run-*.wandb"))


def test_history_config_and_table_of_a_run_read_back(
    config: GraceConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    logger = build_wandb_logger(config, {"git": {"revision": "abc", "dirty": False}})
    table = SamplesTable(tmp_path / "run" / "samples")
    with finishing([logger]):
        for step in (1, 2, 3):
            logger.log_metrics({"train/loss": 1 / step}, step)
            if step != 2:
                table.log(step, [ROW | {"total": step / 2}, ROW | {"role": "query"}], logger.experiment)
            logger.log_metrics({"reward/total/mean": step * 0.1}, step)
    assert capfd.readouterr() == ("", "")

    (path,) = run_files(config)
    rows = history(path)
    assert [row["_step"] for row in rows] == [1, 2, 3]
    assert [row["train/loss"] for row in rows] == [1 / step for step in (1, 2, 3)]
    assert [row["reward/total/mean"] for row in rows] == [step * 0.1 for step in (1, 2, 3)]

    kept = pd.read_parquet(table.path_dir)
    for step in (1, 3):  # the steps of a table add to each other
        shown = json.loads((path.parent / "files" / rows[step - 1]["samples/rollouts.path"]).read_text())
        assert shown["columns"] == kept.columns.tolist()
        expected = kept[kept["step"] == step].astype(object)
        assert shown["data"] == expected.where(expected.notna(), None).to_numpy().tolist()

    (run,) = (record["run"] for record in records(path) if record["type"] == "run")
    sent = run["config"]["update"]
    assert sent["backbone"]["name"] == config.backbone.name
    assert sent["provenance"] == {"git": {"revision": "abc", "dirty": False}}
    assert "git" not in run
    assert not list((path.parent / "files").rglob("*.py"))


def test_a_resumed_run_continues_the_id_in_a_file_of_its_own(config: GraceConfig) -> None:
    with pytest.raises(KeyboardInterrupt):
        first = build_wandb_logger(config)
        with finishing([first]):
            first.log_metrics({"train/loss": 1.0}, 1)
            raise KeyboardInterrupt
    second = build_wandb_logger(config, resume_id=stored_run_id(Path(config.run_dir)))
    with finishing([second]):
        second.log_metrics({"train/loss": 0.5}, 2)
    assert first.version == second.version == stored_run_id(Path(config.run_dir))
    ends = [[record["exit"] for record in records(path) if record["type"] == "exit"] for path in run_files(config)]
    assert ends == [[{"exit_code": 1}], [{"exit_code": 0}]]
    assert [row["_step"] for path in run_files(config) for row in history(path)] == [1, 2]


def test_a_run_that_was_left_open_is_not_written_to(config: GraceConfig) -> None:
    left_open = build_wandb_logger(config)
    own = build_wandb_logger(config)
    with finishing([left_open]), finishing([own]):
        own.log_metrics({"train/loss": 0.5}, 1)
    losses = {path.stem: [row["train/loss"] for row in history(path)] for path in run_files(config)}
    assert losses == {f"run-{left_open.version}": [], f"run-{own.version}": [0.5]}


def test_a_whole_run_has_every_metric_both_tables_artifacts_and_intervals(train, monkeypatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    settings = ["logger=wandb", "logger.wandb.mode=offline", "logger.wandb.group=g", "logger.wandb.notes=why"]
    settings += ["logger.samples_every_n_steps=1", "logger.evolution_every_n_steps=2", "callbacks.export=[merged]"]
    settings += [
        "evaluation=demo",
        "~evaluation.sets.stsb",
        "evaluation.sets.wordnet.size=6",
        "evaluation.minilm=false",
    ]
    folder = train("job.steps=3", *settings).path
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    found = records(path)

    rows = [record["history"]["item"] for record in found if record["type"] == "history"]
    table = pd.read_csv(folder / "metrics.csv")
    for name in set(table) - {"step"}:
        logged = {row["_step"]: row[name] for row in rows if name in row}
        assert logged == {
            int(step): pytest.approx(v) for step, v in zip(table["step"], table[name], strict=True) if v == v
        }, name
    of_tables = {"samples/rollouts": ("samples", [0, 1, 2]), "samples/evolution": ("evolution", [0, 1, 2])}
    for key, (kept, steps) in of_tables.items():
        parts = {row["_step"]: path.parent / "files" / row[f"{key}.path"] for row in rows if f"{key}.path" in row}
        assert sorted(parts) == steps
        shown = sum(len(json.loads(part.read_text())["data"]) for part in parts.values())
        assert shown == len(pd.read_parquet(folder / kept))

    (run,) = (record["run"] for record in found if record["type"] == "run")
    assert (run["run_group"], run["job_type"], run["notes"]) == ("g", "train", "why")
    artifacts = [record["artifact"] for record in found if record["type"] == "artifact"]
    aliases = {one["name"].partition("-")[0]: one["aliases"] for one in artifacts}
    assert {"config", "evaluation", "model"} <= aliases.keys() and {"last", "best"} <= set(aliases["model"])
    rise = json.loads((folder / "summary.json").read_text())["heldout"]["wordnet"]["rise"]
    updates = [record["summary"]["update"] for record in found if record["type"] == "summary"]
    sent = {key: value for update in updates for key, value in update.items()}
    assert [sent[f"heldout/wordnet/rise{end}"] for end in ("", "/low", "/high")] == pytest.approx(list(rise.values()))
