"""What is recorded of a run's origin."""

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from lightning.fabric.utilities.rank_zero import rank_zero_only

from grace_exp.tracking.provenance import git_state, provenance, write_provenance

CONFIG = {"name": "r", "seed": 17, "prompt": {"system": "Zeile ä\n${not.a.reference}\n"}, "optim": {"beta1": 0.1}}
DATA = {"fingerprint": "abc", "rows": {"wordnet": 3}}


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit that tracks package/module.py and ignores environment/."""
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):  # set while git runs a hook
        monkeypatch.delenv(name, raising=False)
    root = tmp_path / "checkout"
    (root / "package").mkdir(parents=True)
    (root / "environment" / "package").mkdir(parents=True)
    (root / "environment" / "package" / "module.py").write_text("")
    (root / "package" / "module.py").write_text("")
    (root / ".gitignore").write_text("environment/\n")
    _git(root, "init", "--quiet")
    _git(root, "add", ".")
    _git(root, "-c", "user.name=t", "-c", "user.email=t@example.com", "commit", "--quiet", "--message=first")
    return root


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_git_revision_and_whether_files_differ(checkout: Path) -> None:
    revision = _git(checkout, "rev-parse", "HEAD")
    assert git_state(checkout / "package") == {"revision": revision, "dirty": False}
    (checkout / "package" / "new.py").write_text("")
    assert git_state(checkout / "package") == {"revision": revision, "dirty": True}


def test_a_package_installed_inside_somebody_elses_checkout_has_no_revision(checkout: Path) -> None:
    assert git_state(checkout / "environment" / "package") is None


def test_outside_a_checkout_or_without_git_there_is_no_revision(
    tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert git_state(tmp_path) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(checkout / "package") is None


def test_record_names_seed_data_command_and_installed_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "grace_exp", "name=two words"])
    record = provenance(CONFIG, DATA)
    assert record["seed"] == 17
    assert record["data"] == DATA
    assert record["command"] == "python -m grace_exp 'name=two words'"
    assert record["packages"]["torch"] == metadata.version("torch")
    assert record["python"] == ".".join(str(part) for part in sys.version_info[:3])
    assert json.loads(json.dumps(record)) == record


def test_the_run_folder_holds_the_resolved_config_and_the_record(tmp_path: Path) -> None:
    record = write_provenance(tmp_path / "run", CONFIG, DATA)
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8")) == CONFIG
    assert json.loads((tmp_path / "run" / "provenance.json").read_text(encoding="utf-8")) == record
    assert record["earlier"] == []


def test_a_resumed_run_keeps_the_records_of_its_earlier_processes(tmp_path: Path) -> None:
    first = write_provenance(tmp_path, CONFIG | {"seed": 1}, DATA)
    second = write_provenance(tmp_path, CONFIG | {"seed": 2}, DATA)
    third = write_provenance(tmp_path, CONFIG | {"seed": 3}, DATA)
    del first["earlier"], second["earlier"]
    assert third["earlier"] == [first, second]


def test_only_the_first_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    write_provenance(tmp_path / "run", CONFIG, DATA)
    assert not (tmp_path / "run").exists()
