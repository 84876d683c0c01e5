"""`.hydra/` in a run folder is that of the folder's own run."""

from pathlib import Path

import pytest
import yaml

from grace_exp.tracking.run_folder import claimed

COMMAND = ("+experiment=demo_tiny", "hydra.run.dir=run")


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = Path("run/.hydra")
    folder.mkdir(parents=True)
    for name in ("config", "hydra", "overrides"):
        (folder / f"{name}.yaml").write_text("- of the first run\n")
    return folder


def untouched(folder: Path) -> bool:
    return {path.read_text() for path in folder.iterdir()} == {"- of the first run\n"} and len(
        list(folder.iterdir())
    ) == 3


def test_a_second_run_in_the_folder_of_a_run_is_refused_and_changes_no_record(invoke, record, capsys) -> None:
    (record.parent / "checkpoints").mkdir()
    (record.parent / "checkpoints" / "step-000001.ckpt").touch()
    assert invoke(*COMMAND) == 2
    assert "holds a run already (step-000001.ckpt)" in capsys.readouterr().err and untouched(record)


def test_neither_does_one_of_another_job_or_while_the_first_is_alive(invoke, record, capsys) -> None:
    (record.parent / "config.yaml").write_text("job: {name: train}\n")
    assert invoke(*COMMAND, "job=prepare_data") == 2
    assert "holds a run of job=train" in capsys.readouterr().err and untouched(record)
    with claimed(record.parent, "train"):
        assert invoke(*COMMAND) == 2
    assert "is in use by process" in capsys.readouterr().err and untouched(record)


def test_a_run_of_its_own_folder_records_its_command(invoke, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke(*COMMAND, "job=clear_cache", "cache_dir=cache", "seed=3") == 0
    folder = Path("run/.hydra")
    overrides = yaml.safe_load((folder / "overrides.yaml").read_text())
    assert overrides == ["+experiment=demo_tiny", "job=clear_cache", "cache_dir=cache", "seed=3"]
    assert yaml.safe_load((folder / "config.yaml").read_text())["seed"] == 3
    assert yaml.safe_load((folder / "hydra.yaml").read_text())["hydra"]["job"]["name"] == "grace_exp"
