"""A run folder belongs to one live run."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from omegaconf import OmegaConf

from grace_exp.errors import ConfigError

CLAIM_FILE = ".claim"
CONFIG_FILE = "config.yaml"


@contextmanager
def claimed(run_dir: Path, job: str) -> Iterator[None]:
    """Reserve a run folder for this process while the block runs and the process lives.

    The lock belongs to the open file, so the kernel releases it when the process ends for any reason.

    Args:
        run_dir: The run folder, created if missing.
        job: `job.name` of the run.

    Raises:
        ConfigError: Another live process uses the folder, or it holds the run of another job.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    claim = run_dir / CLAIM_FILE
    claim.touch()
    with claim.open(encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = stream.read().strip() or "another process"
            raise ConfigError(
                f"run_dir={run_dir} is in use by {owner}: wait for its end, or leave hydra.run.dir out to get a folder "
                "of its own"
            ) from None
        claim.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
        _check_same_job(run_dir, job)
        _remove_unfinished(run_dir)
        yield


def own_folder(wanted: str) -> str:
    """Create the folder `wanted` or, if it exists, the first free one of `wanted`_2, _3, ...; return its name.

    It is registered with OmegaConf as `${own_folder:...}` for `hydra.run.dir`, so that two runs that start in the same
    second get different folders. Creating a folder is atomic; looking for one is not.
    """
    Path(wanted).parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        name = wanted if number == 1 else f"{wanted}_{number}"
        try:
            Path(name).mkdir()
        except FileExistsError:
            number += 1
        else:
            return name


def stored_config(run_dir: Path) -> dict[str, object] | None:
    """Return the resolved configuration of the run in a folder; None if no run has started there."""
    path = run_dir / CONFIG_FILE
    if not path.is_file():
        return None
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else None


def _check_same_job(run_dir: Path, job: str) -> None:
    config = stored_config(run_dir)
    settings = config.get("job") if config else None
    earlier = settings.get("name") if isinstance(settings, dict) else None
    if earlier is not None and earlier != job:
        raise ConfigError(
            f"run_dir={run_dir} holds a run of job={earlier}, whose records job={job} would replace: leave "
            "hydra.run.dir out, or name another folder"
        )


def _remove_unfinished(run_dir: Path) -> None:
    """Delete unfinished files of killed processes (see `tracking.atomic`); no other process writes here now."""
    for path in [*run_dir.glob(".*.tmp"), *run_dir.glob("*/.*.tmp")]:
        if path.is_file():
            path.unlink(missing_ok=True)


OmegaConf.register_new_resolver("own_folder", own_folder, replace=True, use_cache=True)
