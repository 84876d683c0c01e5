"""What a sweep knows about a job, in a file in the job's folder; and a lock on that folder."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from grace_exp.tracking.summary import write_json_atomic

Status = Literal["running", "finished", "failed", "interrupted"]

_RECORD_FILE = "job.json"
_LOCK_FILE = ".lock"


@dataclass(kw_only=True)
class JobRecord:
    """One job of a sweep."""

    sweep: str
    """When, and by which process, the sweep was started that last ran the job."""
    number: int
    """Its position in that sweep, from 0."""
    swept: dict[str, str]
    """Values of its swept settings by key."""
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    """Id of the process that started the job's process and passes signals on to it."""
    status: Status = "running"
    skipped: bool = False
    """Whether it had ended successfully before this sweep was started."""
    resumed: str | None = None
    """Name of the checkpoint from which it was resumed."""
    exit_code: int | None = None
    """Exit code; below 0: minus the number of the signal that killed it."""
    seconds: float | None = None
    """Wall-clock seconds of its process; of the last one if there were several."""
    error: list[str] = field(default_factory=list)
    """The last lines of its output, if it failed."""
    figures: dict[str, float | None] = field(default_factory=dict)
    """Its results by metric name."""

    def write(self, folder: Path) -> None:
        """Write `<folder>/job.json`."""
        write_json_atomic(folder / _RECORD_FILE, asdict(self))


def read_record(folder: Path) -> JobRecord | None:
    """Read a job's record; None if no job of a sweep has run there."""
    path = folder / _RECORD_FILE
    return JobRecord(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def read_records(sweep_dir: Path) -> dict[str, JobRecord]:
    """Read the records of all jobs in a sweep's folder, by the name of the job's folder."""
    records = {path.parent.name: read_record(path.parent) for path in sorted(sweep_dir.glob(f"*/{_RECORD_FILE}"))}
    return {name: record for name, record in records.items() if record is not None}


@contextmanager
def alone_in(folder: Path) -> Iterator[int]:
    """Wait until no other process works in the folder, and keep others out.

    The lock belongs to the open file, not to a process. Handed to a child, it lasts until the child has ended, even if
    this process was killed.
    when this process was killed.

    Yields:
        The file descriptor to hand on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK_FILE).open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield stream.fileno()


def is_free(folder: Path) -> bool:
    """Whether no process works in the folder."""
    with (folder / _LOCK_FILE).open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
