"""The name of a job's folder: equal settings in the same sweep always give the same name."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence

from omegaconf import DictConfig, OmegaConf, open_dict

# Where a job writes, and which metric the table marks, does not change what it computes.
_NOT_THE_JOB = ("run_dir", "cache_dir", "optimized_metric")
_LONGEST_LABEL = 100


def job_folder(root: DictConfig) -> str:
    """Name the folder of a job, e.g. `consistency.weight-0.3_hard_negative.weight-0_1c0ffee5`.

    It is registered with OmegaConf as `${job_folder:}` for `hydra.sweep.subdir`. Hydra's launchers evaluate it wherever
    they run the job.

    Args:
        root: The job's composed settings, with Hydra's own node.

    Returns:
        The swept overrides (if there is room) and eight hex digits of a hash of the resolved settings.
    """
    settings = OmegaConf.masked_copy(root, [str(key) for key in root if key != "hydra"])
    with open_dict(settings):
        for key in _NOT_THE_JOB:
            settings[key] = ""
    plain = json.dumps(OmegaConf.to_container(settings, resolve=True), sort_keys=True)
    swept = swept_values(root.hydra.overrides.task, root.hydra.callbacks.sweep.swept)
    names = short_names(swept)
    label = "_".join(f"{names[key]}-{short_value(value)}" for key, value in swept.items())
    label = re.sub(r"[^A-Za-z0-9.-]+", "_", label)[:_LONGEST_LABEL]
    return "_".join([*([label] if label else []), hashlib.sha256(plain.encode()).hexdigest()[:8]])


def swept_values(overrides: Iterable[str], swept: Sequence[str]) -> dict[str, str]:
    """Return the overrides that differ between a sweep's jobs.

    Args:
        overrides: Overrides of one job, e.g. `["+experiment=demo_tiny", "seed=1"]`.
        swept: The keys that differ.

    Returns:
        Values by key, as text.
    """
    pairs = (override.split("=", 1) for override in overrides if "=" in override)
    return {key.lstrip("+"): value for key, value in pairs if key.lstrip("+") in swept}


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Shorten dotted keys to their last two parts, or to as many as make them different."""
    keys = list(keys)
    names = {}
    for key in keys:
        parts = key.split(".")
        others = [other.split(".") for other in keys if other != key]
        length = next(n for n in range(2, len(parts) + 3) if all(other[-n:] != parts[-n:] for other in others))
        names[key] = ".".join(parts[-length:])
    return names


def short_value(value: str) -> str:
    """Round a number to four digits; any other value is returned unchanged."""
    try:
        return f"{float(value):.4g}" if re.search(r"\.\d{4}", value) else value
    except ValueError:
        return value


OmegaConf.register_new_resolver("job_folder", lambda *, _root_: job_folder(_root_), replace=True)
