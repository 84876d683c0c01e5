"""Quote settings and commands for the shell and for Hydra, so that printed advice works as it stands."""

import re
import shlex
import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString

# Hydra's grammar reads these characters as text without quotes, and no shell changes them. Words that Hydra reads as
# something else (true, null, 12) do not match: they begin with a digit, or are listed.
_PLAIN = re.compile(r"[A-Za-z_./-][A-Za-z0-9_./-]*")
_NOT_TEXT = re.compile(r"[+-]?(null|true|false|nan|inf|infinity|[.0-9][0-9.e+_-]*)", re.IGNORECASE)


def hydra_quoted(text: str) -> str:
    """Return any text in the quoting of Hydra's override grammar."""
    if _PLAIN.fullmatch(text) and not _NOT_TEXT.fullmatch(text):
        return text
    # OmegaConf would read ${...} as an interpolation.
    return QuotedString(_without_interpolation(text), Quote.single).with_quotes()


def override(key: str, value: str | Path) -> str:
    """Return `key=value` as one word of a shell command; the setting gets exactly this text."""
    return shlex.quote(f"{key}={hydra_quoted(str(value))}")


def this_command(*changes: str, sweep: bool = False) -> str | None:
    """Return the command that started this process with other settings, ready to be run again.

    Args:
        changes: Overrides from `override`, or of plain values. They replace the command's own of the same keys.
        sweep: Whether the command becomes a sweep.

    Returns:
        None if the run was started from Python, without a command line.
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
    """Escape `${` as OmegaConf asks: one backslash before it, and the backslashes directly before it doubled."""
    return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", text)
