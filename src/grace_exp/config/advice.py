"""Advice that works as printed: settings and commands, quoted for the shell and for Hydra."""

import re
import shlex
import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString

# What Hydra's grammar reads as text without quotes, and no shell touches. Words that it reads as something else (true,
# null, 12) do not match: they begin with a digit, or are listed.
_PLAIN = re.compile(r"[A-Za-z_./-][A-Za-z0-9_./-]*")
_NOT_TEXT = re.compile(r"[+-]?(null|true|false|nan|inf|infinity|[.0-9][0-9.e+_-]*)", re.IGNORECASE)


def hydra_quoted(text: str) -> str:
    """Text as Hydra's override grammar takes it, whatever is in it."""
    if _PLAIN.fullmatch(text) and not _NOT_TEXT.fullmatch(text):
        return text
    # OmegaConf would read ${...} as an interpolation.
    return QuotedString(_without_interpolation(text), Quote.single).with_quotes()


def override(key: str, value: str | Path) -> str:
    """`key=value` as one word of a shell command, which gives the setting exactly that text."""
    return shlex.quote(f"{key}={hydra_quoted(str(value))}")


def this_command(*changes: str, sweep: bool = False) -> str | None:
    """The command that started this process, as one that can be given again, with other settings.

    Args:
        changes: Overrides as `override` gives them, or of plain values; those of the same key are left out.
        sweep: Whether it becomes a sweep.

    Returns:
        None where no command line started the run, but a call from Python.
    """
    if not HydraConfig.initialized():
        return None
    changed = {change.strip("'").partition("=")[0].lstrip("+") for change in changes}
    kept = [
        shlex.quote(given)
        for given in HydraConfig.get().overrides.task
        if given.partition("=")[0].lstrip("+~") not in changed
    ]
    return " ".join([shlex.quote(_python()), "-m", "grace_exp", *(["-m"] if sweep else []), *kept, *changes])


def _python() -> str:
    python = Path(sys.executable)
    return str(python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else python)


def _without_interpolation(text: str) -> str:
    """OmegaConf's escapes: a backslash before `${`, and those that stand directly before it doubled."""
    return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", text)
