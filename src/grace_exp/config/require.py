"""How schemas and rules state a requirement: `require(batch % mini_batch == 0, "...")`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Require = Callable[[bool, str], None]
"""Takes a condition, and the message for settings that violate it."""


@contextmanager
def requirements() -> Iterator[Require]:
    """Yield a `require` function, and report all violated requirements when the block ends.

    Raises:
        ValueError: One line for each message, in the order of the calls.
    """
    problems: list[str] = []

    def require(holds: bool, message: str) -> None:
        if not holds:
            problems.append(message)

    yield require
    if problems:
        raise ValueError("\n".join(problems))
