"""How schemas and rules say what must hold: `require(batch % mini_batch == 0, "...")`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Require = Callable[[bool, str], None]
"""Takes what must hold, and the message for settings where it does not hold."""


@contextmanager
def requirements() -> Iterator[Require]:
    """Gives a `require` function, and reports everything that did not hold when the block ends.

    Raises:
        ValueError: One line a message, in the order of the calls.
    """
    problems: list[str] = []

    def require(holds: bool, message: str) -> None:
        if not holds:
            problems.append(message)

    yield require
    if problems:
        raise ValueError("\n".join(problems))
