"""Settings that differ between a run and its experiment, or between runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import HydraException

from grace_exp.config.compose import compose_config, to_dict
from grace_exp.errors import GraceError
from grace_exp.review.run_files import RunFiles

_NOT_SETTINGS = ("run_dir", "cache_dir")


def flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Return values by dotted key."""
    if isinstance(settings, Mapping) and settings:
        return {key: value for name, part in settings.items() for key, value in flat(part, f"{prefix}{name}.").items()}
    return {prefix[:-1]: settings}


def changed_settings(run: RunFiles) -> list[dict[str, Any]] | None:
    """Return the settings that the run's command changed in its experiment, as `key`, `default`, `value`.

    The experiment is composed from the present `conf/`.

    Returns:
        None if the run's command is unknown, or the experiment cannot be composed any more.
    """
    if not run.overrides:
        return None
    experiment = [override for override in run.overrides if override.startswith("+experiment=")]
    try:
        default = to_dict(compose_config(experiment, run.path))
    except (GraceError, HydraException):
        return None
    return [
        {"key": key, "default": before, "value": value}
        for key, (before, value) in _differing([default, dict(run.config)]).items()
    ]


def differing_settings(runs: Sequence[RunFiles]) -> list[dict[str, Any]]:
    """Return settings that differ between the runs, as `key` and `values`, one per run."""
    return [{"key": key, "values": list(values)} for key, values in _differing([run.config for run in runs]).items()]


def _differing(settings: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    plain = [flat(run_settings) for run_settings in settings]
    keys = dict.fromkeys(key for run_settings in plain for key in run_settings)
    rows = {key: tuple(run_settings.get(key) for run_settings in plain) for key in keys if key not in _NOT_SETTINGS}
    return {key: values for key, values in rows.items() if any(value != values[0] for value in values)}


def shown_path(path: Path) -> str:
    """Return a path as a page shows it: relative to the working directory if it is inside it."""
    absolute = path.absolute()
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(absolute)
