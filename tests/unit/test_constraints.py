"""The pins of constraints/ go together on Python 3.11 to 3.13, by the metadata of what is installed."""

import re
import shlex
import subprocess
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

CONSTRAINTS = Path(__file__).parents[2] / "constraints"


def pins(name: str) -> dict[str, str]:
    lines = (CONSTRAINTS / name).read_text(encoding="utf-8").splitlines()
    pairs = [line.partition("#")[0].strip().partition("==") for line in lines]
    return {canonicalize_name(package): version for package, _, version in pairs if package}


def environment(python: str) -> dict[str, str]:
    """Of a Linux machine with x86-64 processors; no extra is asked for."""
    full = {"python_version": python, "python_full_version": f"{python}.0", "implementation_version": f"{python}.0"}
    return full | {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64", "extra": ""}


def installed_as_pinned(versions: dict[str, str]) -> list[metadata.Distribution]:
    """Packages that are here in the pinned version (whatever its build), so that their requirements are the pin's."""
    return [
        found
        for found in metadata.distributions()
        if versions.get(canonicalize_name(found.metadata["Name"])) == re.sub(r"\+.*", "", found.version)
    ]


def conflicts(found: metadata.Distribution, versions: dict[str, str], python: str) -> list[str]:
    """What a package asks of the others that their pins do not give."""
    name, wrong = found.metadata["Name"], []
    if not SpecifierSet(found.metadata["Requires-Python"] or "").contains(f"{python}.0"):
        wrong.append(f"{name} wants Python {found.metadata['Requires-Python']}")
    for requirement in map(Requirement, found.requires or ()):
        pinned = versions.get(canonicalize_name(requirement.name))
        applies = requirement.marker is None or requirement.marker.evaluate(environment(python))
        if applies and pinned is not None and not requirement.specifier.contains(pinned, prereleases=True):
            wrong.append(f"{name} {found.version} wants {requirement}, the pin is {pinned}")
    return wrong


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("name", ["cpu.txt", "cuda.txt"])
def test_what_packages_want_of_each_other_is_what_is_pinned(name: str, python: str) -> None:
    versions = pins(name)
    checked = installed_as_pinned(versions)
    assert {"torch", "transformers", "lightning", "peft"} <= {
        canonicalize_name(one.metadata["Name"]) for one in checked
    }
    assert [text for one in checked for text in conflicts(one, versions, python)] == []


def test_a_pin_outside_of_what_a_package_wants_is_found() -> None:
    versions = pins("cuda.txt") | {"huggingface-hub": "0.1.0", "torch": "1.0.0"}
    found = {
        text.split()[0] for one in installed_as_pinned(pins("cuda.txt")) for text in conflicts(one, versions, "3.12")
    }
    assert {"transformers", "lightning"} <= found
    assert conflicts(metadata.distribution("torch"), {}, "3.6") != []


def test_an_environment_for_gpus_has_everything_with_vllms_cuda_build_by_its_pins(tmp_path: Path) -> None:
    command = ["make", "-n", "venv-gpu", f"GPU_VENV={tmp_path / 'venv'}"]
    said = subprocess.run(command, cwd=CONSTRAINTS.parent, capture_output=True, text=True, check=True).stdout
    installs = [shlex.split(line) for line in said.splitlines() if "-m pip install" in line and "--no-deps" not in line]
    assert [words[words.index("-c") + 1] for words in installs] == ["constraints/cuda.txt"] * 4
    assert all(words[0] == f"{tmp_path / 'venv'}/bin/python" for words in installs)
    assert installs[0][-1] == f"torch=={pins('cuda.txt')['torch']}"
    assert installs[-1][-1] == ".[vllm]"
    extras = set(re.findall(r"\w+", installs[-2][-1]))
    assert {"dev", "embedded", "eval", "general", "sweep"} <= extras
