"""Write the HTML report of a training run, however it ends."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from grace_exp.config.root import GraceConfig
from grace_exp.jobs.terminal import is_first_process
from grace_exp.review.html_report import write_report
from grace_exp.review.run_files import UnreadableRun


@contextlib.contextmanager
def reporting(config: GraceConfig, console: Console) -> Iterator[None]:
    """Write the run's report after the block, and print its path.

    A run that fails also gets a report; an error in the report does not hide the run's error.

    Args:
        config: The settings; nothing is written if `callbacks.report` is false.
        console: Console for the path.
    """
    wanted = config.callbacks.report and is_first_process()
    run_dir = Path(config.run_dir)
    try:
        yield
    except Exception:
        if wanted:
            with contextlib.suppress(Exception):
                _say(console, write_report([run_dir], run_dir)[0])
        raise
    if wanted:
        try:
            _say(console, write_report([run_dir], run_dir)[0])
        except UnreadableRun as error:  # e.g. the disk is full; the run itself is complete
            console.print(f"no report: {error}", highlight=False, markup=False, soft_wrap=True)


def _say(console: Console, page: Path) -> None:
    console.print(f"Report: {page}", highlight=False, markup=False, soft_wrap=True)
