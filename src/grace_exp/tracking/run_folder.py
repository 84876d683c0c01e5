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
    """Keep a run folder for this process as long as the block runs, or the process lives.

    The lock belongs to the open file: the kernel gives it back when the process ends, however it ends.

    Args:
        run_dir: The run folder, made when missing.
        job: `job.name` of the run.

    Raises:
        ConfigError: Another live process has the folder, or it holds the run of another job.
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
    """Make the folder `wanted`, or, where it is there already, the first of `wanted`_2, _3, ...; return its name.

    Registered with OmegaConf as `${own_folder:...}` for `hydra.run.dir`: of two runs that start in the same second each
    gets a folder of its own. Making a folder is atomic, looking for one is not.
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
    """The resolved configuration of the run in a folder, None where none has begun."""
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
    """What killed processes were writing (see `tracking.atomic`): nobody else writes here now."""
    for path in [*run_dir.glob(".*.tmp"), *run_dir.glob("*/.*.tmp")]:
        if path.is_file():
            path.unlink(missing_ok=True)


OmegaConf.register_new_resolver("own_folder", own_folder, replace=True, use_cache=True)
