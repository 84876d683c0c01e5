"""Advice that works as printed: settings and commands, quoted for the shell and for Hydra."""

import re
import shlex
from pathlib import Path

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


def _without_interpolation(text: str) -> str:
    """OmegaConf's escapes: a backslash before `${`, and those that stand directly before it doubled."""
    return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", text)
