"""A progress bar for long encodings, on stderr because stdout is for results."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(texts: int, *, visible: bool) -> Iterator[Callable[[int], None]]:
    """Show texts done, texts per second and time left; give a function to call with the number of new texts."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft
    from rich.text import Text

    class Speed(ProgressColumn):
        """Texts per second."""

        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:.1f} texts/s")

    columns = (TextColumn("texts"), BarColumn(), MofNCompleteColumn(), Speed(), TimeLeft(elapsed_when_finished=True))
    with Progress(*columns, console=Console(stderr=True), disable=not visible) as progress:
        task = progress.add_task("texts", total=texts)
        yield lambda done: progress.advance(task, done)
