"""Where to continue, and whether the settings still fit."""

import pickle
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from grace_exp.config.root import GraceConfig
from grace_exp.errors import ConfigError, MissingResourceError
from grace_exp.training.checkpoints import newest_checkpoint

# May change between a run and its continuation: they alter neither weights nor metrics of a step.
_FREE = ("run_dir", "cache_dir", "name", "logger", "callbacks", "evaluation", "job.resume", "job.steps", "job.small_experiment")


def find_checkpoint(resume: str) -> Path:
    """The checkpoint that `job.resume` names: itself, or the newest of a run folder.

    Raises:
        MissingResourceError: There is none.
    """
    path = Path(resume)
    found = path if path.is_file() else newest_checkpoint(path)
    if found is None:
        raise MissingResourceError(f"job.resume = {resume!r}: neither a checkpoint file nor a run folder with checkpoints/step-*.ckpt")
    return found


def continued(config: GraceConfig) -> tuple[GraceConfig, Path]:
    """The configuration with the interrupted run's folder, and the checkpoint to continue from.

    Raises:
        MissingResourceError: There is no checkpoint.
        ConfigError: The settings are not those of the interrupted run, or its steps are done.
    """
    assert config.job.resume is not None
    path = find_checkpoint(config.job.resume)
    state = load_checkpoint(path)["grace"]
    check_same_run(state["config"], config)
    if state["completed_steps"] >= config.job.steps:
        raise ConfigError(f"job.resume: {path} has all {config.job.steps} steps behind it; raise job.steps to go on")
    return replace(config, run_dir=str(path.parent.parent)), path


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's contents, on the CPU; data only, no code is run.

    Raises:
        MissingResourceError: The file is not a checkpoint of this project.
    """
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        checkpoint["grace"]["completed_steps"]
    except (RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise MissingResourceError(f"job.resume: {path} is not a checkpoint of grace-exp, or is damaged: {error}") from error
    return checkpoint


def check_same_run(saved: dict[str, Any], config: GraceConfig) -> None:
    """Refuse to continue a run under other settings.

    Raises:
        ConfigError: Every setting that differs, with both values.
    """
    before, now = _flat(saved), _flat(asdict(config))
    differing = [
        f"  {key}: {before.get(key)!r} in the checkpoint, {now.get(key)!r} now"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key) and not any(key == free or key.startswith(free + ".") for free in _FREE)
    ]
    if config.optim.schedule != "constant" and before["job.steps"] != now["job.steps"]:
        differing.append(f"  job.steps: {before['job.steps']} in the checkpoint, {now['job.steps']} now (the schedule depends on it)")
    if differing:
        raise ConfigError("job.resume: this is not the run that was interrupted\n" + "\n".join(differing))


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {k: v for key, item in value.items() for k, v in _flat(item, f"{prefix}{key}.").items()}
    return {prefix[:-1]: value}
