"""The command: what runs, what is printed, how it exits."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import grace_exp.__main__ as command
from grace_exp.config.root import GraceConfig
from grace_exp.errors import DataError
from grace_exp.tracking.result import read_result

SOURCES = str(Path(command.__file__).parents[1])
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([SOURCES, os.environ.get("PYTHONPATH", "")]),
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
}
LIGHT = """
import sys
from grace_exp.__main__ import main
for arguments in ("--help", "+experiment=qwen_sup --cfg job", "+experiment=qwen_sup --cfg job --resolve"):
    sys.argv = ["grace-exp", *arguments.split()]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, stop.code
heavy = {"torch", "lightning", "transformers", "datasets", "wandb", "huggingface_hub"}
print("heavy:", sorted(heavy & set(sys.modules)))
"""

Invoke = Callable[..., int]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[GraceConfig]:
    """The settings of the jobs that started; a job without weight on consistency fails as if its data were bad."""
    configs: list[GraceConfig] = []

    def job(config: GraceConfig) -> dict[str, float]:
        configs.append(config)
        if config.reward.terms.consistency and config.reward.terms.consistency.weight == 0:
            raise DataError("my.jsonl, line 7: `positive` is empty")
        return {"reward/total/mean": 0.5}

    monkeypatch.setattr(command, "run", job)
    return configs


def test_help_and_printing_settings_work_in_any_folder_and_load_nothing_heavy(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIGHT], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert "heavy: []" in done.stdout
    assert "python -m grace_exp +experiment=demo" in done.stdout and "\nbackbone: llama32_3b, " in done.stdout
    assert "path: Qwen/Qwen2.5-1.5B-Instruct" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_run_for_gpus_on_a_machine_without_says_so_and_how_to_run_it_small(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "grace_exp", "+experiment=qwen_sup"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(
        "grace-exp: this machine cannot run 'qwen_sup' (train):\n  - hardware=h100x4 wants 4 GPU"
    )
    assert done.stderr.endswith("\n  python -m grace_exp +experiment=demo\n")
    assert "Traceback" not in done.stderr and done.stdout == ""


def test_a_run_starts_the_job_in_a_folder_of_its_own(
    invoke: Invoke, started: list[GraceConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke("+experiment=demo_tiny", "seed=3") == 0
    (config,) = started
    run_dir = Path(config.run_dir)
    assert run_dir.is_dir() and run_dir.parent == tmp_path / "runs" / "demo_tiny" and run_dir.name.endswith("_seed3")
    assert capsys.readouterr() == ("", "")
    assert read_result(run_dir) is None  # training writes it itself, as the last thing of its end
    assert invoke("+experiment=demo_tiny", "job=prepare_data") == 0
    assert read_result(Path(started[1].run_dir)) == {"reward/total/mean": 0.5}


def test_an_error_of_the_user_is_one_message_without_traceback(
    invoke: Invoke, started: list[GraceConfig], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert invoke("+experiment=demo_tiny", "reward.terms.consistency.weight=0") == 2
    assert capsys.readouterr().err == "grace-exp: my.jsonl, line 7: `positive` is empty\n"
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(DataError):
        invoke("+experiment=demo_tiny", "reward.terms.consistency.weight=0")


def test_misspelt_keys_get_the_nearest_one(
    invoke: Invoke, started: list[GraceConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke("+experiment=demo_tiny", "reward.tempratur=3") == 2
    hint = "reward.tempratur: unknown key (did you mean reward.temperature?); allowed under reward: name, temperature,"
    errors = capsys.readouterr().err
    assert hint in errors and "Traceback" not in errors
    assert invoke("+experiment=demo_tiny", "rewrad.x=3") == 2
    assert "rewrad: unknown key (did you mean reward?); allowed at the top: name, seed," in capsys.readouterr().err
    assert started == []


def test_a_choice_that_does_not_exist_gets_the_list_of_those_that_do(
    invoke: Invoke, started: list[GraceConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke("reward=foo") == 2
    errors = capsys.readouterr().err
    assert "paper_unsupervised" in errors and "Traceback" not in errors
    assert invoke("+experiment=demoo") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(
        "grace-exp: experiment=demoo: there is no such choice (did you mean experiment=demo?); there"
    )
    assert invoke("experiment=demo") == 1
    assert "use +experiment=demo" in capsys.readouterr().err


def test_a_full_disk_is_one_message_with_the_way_on(
    invoke: Invoke, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from grace_exp import __main__ as command

    def full(config: GraceConfig) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "run/step.ckpt")

    monkeypatch.setattr(command, "run", full)
    assert invoke("+experiment=demo_tiny", "hydra.run.dir='a b'") == 2
    errors = capsys.readouterr().err
    assert (
        errors.startswith("grace-exp: No space left on device: run/step.ckpt. Make room") and "Traceback" not in errors
    )
    assert shlex.split(errors)[-1].startswith("job.resume='/") and shlex.split(errors)[-1].endswith("/a b'")


@pytest.mark.parametrize("folder", ["taken", "taken/below"])
def test_a_run_folder_that_cannot_be_is_one_message(
    invoke: Invoke, started: list[GraceConfig], capsys: pytest.CaptureFixture[str], folder: str
) -> None:
    Path("taken").write_text("a file")
    for key, mode in (("hydra.run.dir", []), ("hydra.sweep.dir", ["-m"])):
        assert invoke(*mode, "+experiment=demo_tiny", f"{key}={folder}") == 2
        errors = capsys.readouterr().err
        assert errors.startswith(f"grace-exp: {key}=") and errors.endswith(f"set {key}=another/folder\n")
        assert "cannot be a folder (" in errors and "Traceback" not in errors
    assert not started
