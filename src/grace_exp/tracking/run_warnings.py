"""The warnings of a run: one JSON object a line in the run folder, W&B alerts, the terminal and the log."""

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from lightning.fabric.utilities.rank_zero import rank_zero_only

from grace_exp.tracking.atomic import write_text_atomic

if TYPE_CHECKING:
    import wandb

WARNINGS_FILE = "warnings.jsonl"

_LOG = logging.getLogger(__name__)


@contextmanager
def collected(kind: type[Warning]) -> Iterator[list[str]]:
    """Collect the Python warnings of one kind inside the block; other warnings are shown as usual."""
    found: list[str] = []
    show = warnings.showwarning

    def keep(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, kind):
            found.append(str(message))
        else:
            show(message, category, filename, lineno, file, line)

    warnings.showwarning = keep
    try:
        yield found
    finally:
        warnings.showwarning = show


class RunWarnings:
    """Collects the warnings of a run and passes each to everything that shows them."""

    def __init__(self, run_dir: Path, announce: Callable[[str], None], run: "wandb.Run | None" = None) -> None:
        """Start with the warnings in the folder.

        Args:
            run_dir: The run folder.
            announce: Called with the message, for the terminal.
            run: The W&B run, which gets an alert.
        """
        self._path = run_dir / WARNINGS_FILE
        self._announce = announce
        self._run = run
        self.listeners: list[Callable[..., None]] = []
        """Functions that are called with step, kind and message by keyword."""

    @rank_zero_only
    def add(self, step: int, kind: str, message: str) -> None:
        """Add a warning.

        Args:
            step: Number of the step, counted from 0.
            kind: What was found, e.g. `watchdog/effective_rank` or `inert_term`.
            message: The text for the user.
        """
        self._announce(message)
        _LOG.info(message)  # the terminal already shows it
        line = json.dumps({"step": step, "kind": kind, "message": message}, ensure_ascii=False)
        before = self._path.read_text(encoding="utf-8") if self._path.is_file() else ""
        write_text_atomic(self._path, f"{before}{line}\n")
        for listener in self.listeners:
            listener(step=step, kind=kind, message=message)
        if self._run is not None:
            self._run.alert(title=f"{self._run.name}: {kind}", text=message, level="WARN", wait_duration=0)

    @rank_zero_only
    def truncate(self, step: int) -> None:
        """Delete the warnings of `step` and after, because a resumed run gives them again."""
        if self._path.is_file():
            kept = [row for row in read_warnings(self._path.parent) if row["step"] < step]
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
            write_text_atomic(self._path, text)


def read_warnings(run_dir: Path) -> list[dict[str, Any]]:
    """Return the warnings of a run in order.

    Raises:
        ValueError: The file holds something else.
    """
    path = run_dir / WARNINGS_FILE
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
