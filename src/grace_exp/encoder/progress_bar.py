"""A bar for long encodings, on stderr: stdout belongs to results."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(texts: int, *, visible: bool) -> Iterator[Callable[[int], None]]:
    """Gives what to call with the number of further texts done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("texts"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not visible) as progress:
        task = progress.add_task("texts", total=texts)
        yield lambda done: progress.advance(task, done)
