"""Find the checkpoint to resume from, and check that the settings still fit."""

import pickle
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only

from grace_exp.config.advice import override
from grace_exp.config.root import GraceConfig
from grace_exp.errors import ConfigError, MissingResourceError
from grace_exp.tracking.run_folder import stored_config
from grace_exp.training.checkpoints import FOLDER, newest_checkpoint

# Settings that may change between a run and its continuation. They change neither weights nor metrics of a step, or
# only their last bits (token budgets and layout, which must change after running out of memory).
_FREE = (
    "run_dir",
    "cache_dir",
    "name",
    "logger",
    "callbacks",
    "evaluation",
    "job.name",
    "job.resume",
    "job.steps",
    "job.small_experiment",
    "job.plan",
    "backbone.gradient_checkpointing",
    "backbone.shape",
    "rollout.batch_tokens",
    "hardware.devices",
    "hardware.nodes",
    "hardware.strategy",
    "hardware.threads",
    "hardware.linear",
    "hardware.keep_forward",
    "hardware.packing",
    "hardware.packed_attention",
    "hardware.pad_to",
    "hardware.compile",
    "hardware.one_pass",
    "hardware.score_tokens",
    "hardware.train_tokens",
    "hardware.max_row_tokens",
    "hardware.logprob_chunk_tokens",
    "hardware.memory_gib",
    "hardware.peak_tflops",
    "hardware.memory_bandwidth",
)
# What runs did before these settings existed, if it differs from the present default.
_OLDER_RUNS: dict[str, object] = {"reward.terms.hard_negative.equal_texts": "keep"}
# Settings that must agree before weights are loaded.
_ARCHITECTURE = ("backbone.source", "backbone.path", "backbone.revision", "backbone.lora")

# Settings that decide the embedding of a text for given weights.
_EMBEDDING = ("prompt", "backbone.pooling", "backbone.template_kwargs", "rollout.anchor_rationales", "method.name")


def find_checkpoint(resume: str) -> Path:
    """Return the checkpoint that `job.resume` names: the file itself, or the newest of a run folder.

    Raises:
        MissingResourceError: There is none.
    """
    path = Path(resume).expanduser()
    found = path if path.is_file() else newest_checkpoint(path)
    if found is None:
        raise MissingResourceError(
            f"job.resume = {resume!r}: neither a checkpoint file nor a run folder with {FOLDER}/step-*.ckpt"
        )
    return found


def check_new(run_dir: Path) -> None:
    """Refuse to start a run in the folder of another run.

    Raises:
        ConfigError: The folder holds a checkpoint; the message says how to continue its run.
    """
    if (newest := newest_checkpoint(run_dir)) is not None:
        raise ConfigError(
            f"run_dir={run_dir} holds a run already ({newest.name}): continue it with the same command and "
            f"{override('job.resume', run_dir)}, or choose another folder"
        )


def run_folder(resume: str) -> Path:
    """Return the run folder that `job.resume` names: the folder itself, or that of a checkpoint.

    The checkpoint or its folder may be a link to another disk. The path as given is tried first, then the targets of
    its links.

    Raises:
        MissingResourceError: The checkpoint is outside a run folder, or the path does not exist.
    """
    named = Path(resume).expanduser()
    if named.is_dir():
        return named
    for path in _behind_links(named):
        if path.is_file() and path.parent.name == FOLDER and stored_config(path.parent.parent) is not None:
            return path.parent.parent
    find_checkpoint(resume)  # raises if there is nothing
    raise MissingResourceError(
        f"job.resume: {named} is not in the folder {FOLDER}/ of a run, so there is no run folder to continue in: name "
        "the run folder, or the checkpoint inside it"
    )


def _behind_links(path: Path) -> Iterator[Path]:
    """Yield the path as named, then the targets of its links one after the other, and the resolved path."""
    real = path.resolve()
    while path.is_symlink():
        yield path
        path = path.parent / path.readlink()
    yield from (path, real)


def continued(config: GraceConfig) -> tuple[GraceConfig, Path | None, int]:
    """Return the configuration with the interrupted run's folder, the checkpoint to resume, and its completed steps.

    The checkpoint is None if the run was killed before its first one; the run then starts again in its folder.

    Raises:
        MissingResourceError: There is neither a checkpoint nor a started run, or the checkpoint is outside a run
            folder.
        ConfigError: The settings differ from those of the interrupted run, or it has more steps than asked for.
    """
    assert config.job.resume is not None
    folder = run_folder(config.job.resume)
    resumed = replace(config, run_dir=str(folder))
    begun = stored_config(folder)
    if Path(config.job.resume).expanduser().is_dir() and newest_checkpoint(folder) is None and begun is not None:
        check_same_run(begun, config)
        return resumed, None, 0
    path = find_checkpoint(config.job.resume)
    state = load_checkpoint(path)["grace"]
    completed: int = state["completed_steps"]
    check_same_run(state["config"], config)
    if completed > config.job.steps:
        raise ConfigError(
            f"job.resume: {path} has done {completed} steps, and job.steps={config.job.steps}; say "
            f"job.steps={completed} to end the run, or more to train on"
        )
    return resumed, path, completed


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return a checkpoint's contents, on the CPU. It holds data only; no code is run.

    The file is mapped, so values are read where they are used. The first process reads all of it to compare checksums.

    Raises:
        MissingResourceError: The file is not a checkpoint of this project.
    """
    try:
        if int(getattr(rank_zero_only, "rank", 0)) == 0:
            with zipfile.ZipFile(path) as archive:  # torch writes checksums but does not check them
                damaged = archive.testzip()
            if damaged is not None:
                raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        checkpoint["grace"]["completed_steps"]
    except (zipfile.BadZipFile, OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise MissingResourceError(
            f"job.resume: {path} is not a checkpoint of grace-exp, or is damaged ({reason}). "
            f"Name an earlier one as job.resume=<run folder>/{FOLDER}/step-<number>.ckpt"
        ) from error
    return checkpoint


def check_same_run(saved: dict[str, Any], config: GraceConfig) -> None:
    """Refuse to continue a run with other settings.

    Raises:
        ConfigError: The message lists every setting that differs, with both values.
    """
    differing = [
        line for key, line in _differences(saved, config).items() if not any(_within(key, free) for free in _FREE)
    ]
    before, now = saved["job"]["steps"], config.job.steps
    if config.optim.schedule != "constant" and before != now:
        differing.append(f"  job.steps: {before} in the checkpoint, {now} now (optim.schedule depends on it)")
    if differing:
        raise ConfigError("job.resume: this is not the run that was interrupted\n" + "\n".join(differing))


def check_same_model(saved: dict[str, Any], config: GraceConfig) -> None:
    """Refuse to load a checkpoint's weights into another model.

    Raises:
        ConfigError: The message lists every setting of the model that differs, with both values.
    """
    differing = [
        line for key, line in _differences(saved, config).items() if any(_within(key, part) for part in _ARCHITECTURE)
    ]
    if differing:
        raise ConfigError("job.resume: the checkpoint is of another model\n" + "\n".join(differing))


def embedded_otherwise(saved: dict[str, Any], config: GraceConfig) -> list[str]:
    """Return a line for each setting with which a checkpoint's weights give other embeddings than in its run."""
    own_budget = config.job.encode.max_tokens or config.evaluation.max_tokens
    keys = _EMBEDDING if own_budget else (*_EMBEDDING, "rollout.max_tokens")
    return [
        line.strip()
        for key, line in _differences(saved, config).items()
        if any(_within(key, part) for part in keys) and key != "prompt.name"
    ]


def _differences(saved: dict[str, Any], config: GraceConfig) -> dict[str, str]:
    """Return a line for each setting that differs; a setting newer than the checkpoint counts as its default."""
    now, stored = _flat(asdict(config)), _flat(saved)
    before = {key: _untupled(_default(config, key)) if _is_newer(key, stored) else None for key in now} | stored
    return {
        key: f"  {key}: {before[key]!r} in the checkpoint, {now.get(key)!r} now"
        for key in sorted(before)
        if before[key] != now.get(key)
    }


def _is_newer(key: str, stored: dict[str, Any]) -> bool:
    """Whether a checkpoint has neither a setting nor its group; a group that was null counts as present."""
    parts = key.split(".")
    return not any(".".join(parts[:length]) in stored for length in range(1, len(parts) + 1))


def _default(config: GraceConfig, key: str) -> object:
    """Return what runs did before a setting existed: the schema's default; None if it has none."""
    if key in _OLDER_RUNS:
        return _OLDER_RUNS[key]
    *groups, name = key.split(".")
    value: Any = config
    for group in groups:
        value = value.get(group) if isinstance(value, dict) else getattr(value, group, None)
    if not is_dataclass(value):
        return None
    schema: Any = type(value)
    declared = schema.__pydantic_fields__[name]
    return None if declared.is_required() else declared.get_default(call_default_factory=True)


def _within(key: str, part: str) -> bool:
    return key == part or key.startswith(part + ".")


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {k: v for key, item in value.items() for k, v in _flat(item, f"{prefix}{key}.").items()}
    return {prefix[:-1]: _untupled(value)}


def _untupled(value: Any) -> Any:
    """Return the value as YAML and JSON store it, without tuples."""
    return list(value) if isinstance(value, tuple) else value
