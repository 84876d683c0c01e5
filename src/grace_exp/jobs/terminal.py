"""What the terminal shows: this package's lines, once, and all warnings."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TextIO

from rich.console import Console

_for_machines: list[TextIO] = []


@contextmanager
def stdout_for_machines(wanted: bool) -> Iterator[None]:
    """Reserve standard output for `machine_output`: all other output goes to standard error.

    Libraries print while they are imported, and processes that they start inherit the file.

    Args:
        wanted: Whether to do this; otherwise nothing changes.
    """
    if not wanted:
        yield
        return
    out = sys.stdout
    kept = os.dup(1) if out is sys.__stdout__ else None
    if kept is not None:
        out.flush()
        os.dup2(2, 1)
        out = os.fdopen(kept, "w", encoding="utf-8")
    _for_machines.append(out)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _for_machines.remove(out)
        if kept is not None:
            out.flush()
            sys.stdout.flush()
            os.dup2(kept, 1)
            out.close()


def machine_output() -> TextIO:
    """Return the stream for machine-readable lines: inside `stdout_for_machines` the original standard output."""
    return _for_machines[-1] if _for_machines else sys.stdout


def our_console(*, stderr: bool = False) -> Console:
    """Return a console for a job's messages; it is silent on all processes except the first.

    It prints brackets unchanged, because the user's texts, paths and names may contain some. Style is given with
    `rich.text.Text` or `style=`.
    """
    return Console(quiet=not is_first_process(), markup=False, stderr=stderr)


def is_first_process() -> bool:
    """Whether this process prints and writes for all; known before the processes are connected."""
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    return int(getattr(rank_zero_only, "rank", 0)) == 0


def quiet_libraries() -> None:
    """Keep notes, tips and progress bars of libraries off the terminal.

    Their warnings are shown, except three that need no action. Their log messages are still written to the run folder's
    log file. Download bars are shown, because downloads are long.
    """
    import lightning.pytorch  # noqa: F401 - adds the handlers below
    from huggingface_hub.utils.tqdm import enable_progress_bars
    from transformers.utils import logging as transformers_logging

    for name in ("lightning", "lightning.fabric", "lightning.pytorch"):
        for handler in logging.getLogger(name).handlers:
            handler.setLevel(logging.WARNING)
    for message in (
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",
        r"torch\.distributed\.nn\.functional\.all_gather is deprecated",
        r"Found \d+ module\(s\) in eval mode",  # the reference is in that mode on purpose
    ):
        warnings.filterwarnings("ignore", message=message)
    transformers_logging.disable_progress_bar()  # of loading and saving weights; this also hides those of the hub
    enable_progress_bars()
