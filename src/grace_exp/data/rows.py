"""Take the texts out of a row, or say why it cannot be used; and the log of such rows."""

import json
from pathlib import Path

from grace_exp.config.data import DataConfig, SourceConfig
from grace_exp.data.lines import BadRow, Row, describe, undecodable
from grace_exp.errors import ConfigError

RAW_CHARACTERS = 200
"""How many characters of a rejected row are kept."""

Texts = dict[str, str | list[str]]
"""`query`, `positive`, `negatives` (a list) in supervised data; `text` in unsupervised data."""


class RejectLog:
    """The file of rejected rows, one JSON object a line: file, line, reason, raw (shortened)."""

    def __init__(self, path: Path) -> None:
        """Start anew; the file is created with the first rejected row.

        Args:
            path: A path in the run folder, usually `rejects.jsonl`. Only one of several processes may write it.
        """
        self._path = path
        path.unlink(missing_ok=True)

    def extend(self, prepared: Path) -> None:
        """Appends the rejected rows of a prepared source."""
        content = prepared.read_bytes()
        if content:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.write(content)


def reject_line(label: str, bad: BadRow) -> str:
    """Return the rejected row as a line of rejects.jsonl."""
    raw = bad.raw if len(bad.raw) <= RAW_CHARACTERS else bad.raw[:RAW_CHARACTERS] + "..."
    return json.dumps({"file": label, "line": bad.line, "reason": bad.reason, "raw": raw}) + "\n"


def columns(name: str, source: SourceConfig, data: DataConfig) -> tuple[str, ...]:
    """Return the columns that a source must have.

    Raises:
        ConfigError: Negatives are asked for, but the source names no column for them.
    """
    if data.mode == "unsupervised":
        return (source.text,)
    if data.negatives == 0:
        return (source.query, source.positive)
    if source.negative is None:
        raise ConfigError(
            f"{_negatives_key(source, name)}={data.negatives} but data.sources.{name}.negative=null: name the column "
            f"of the negatives or set data.sources.{name}.negatives=0"
        )
    return (source.query, source.positive, source.negative)


def texts_of(row: Row, source: SourceConfig, data: DataConfig) -> Texts | BadRow:
    """Return the checked texts of a row, or why it cannot be used; surplus negatives are left out."""
    try:
        if data.mode == "unsupervised":
            return {"text": _text(row, source.text, data)}
        texts: Texts = {"query": _text(row, source.query, data), "positive": _text(row, source.positive, data)}
        texts["negatives"] = (
            _negatives(row, source, source.negative, data) if source.negative and data.negatives else []
        )
        return texts
    except _Unusable as unusable:
        return BadRow(row.line, str(unusable), row.raw or json.dumps(row.fields, default=str))


class _Unusable(Exception):
    """Why a row cannot be used."""


def _field(row: Row, name: str) -> object:
    if name not in row.fields:
        found = ", ".join(map(repr, row.fields)) or "no field"
        raise _Unusable(f"field {name!r} is missing: found {found}")
    return row.fields[name]


def _text(row: Row, name: str, data: DataConfig) -> str:
    return _checked(_field(row, name), f"field {name!r}", data)


def _negatives_key(source: SourceConfig, name: str) -> str:
    """Return the setting that asks for negatives."""
    return "data.negatives" if source.negatives is None else f"data.sources.{name}.negatives"


def _negatives(row: Row, source: SourceConfig, name: str, data: DataConfig) -> list[str]:
    value = _field(row, name)
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise _Unusable(f"field {name!r} is {describe(value)}; expected a text or a list of texts")
    if len(value) < data.negatives:
        key = _negatives_key(source, next(iter(data.sources)))
        raise _Unusable(f"field {name!r} holds {len(value)} texts; {key}={data.negatives} expects as many")
    return [
        _checked(text, f"text {number} of field {name!r}", data)
        for number, text in enumerate(value[: data.negatives], start=1)
    ]


def _checked(value: object, what: str, data: DataConfig) -> str:
    if not isinstance(value, str):
        raise _Unusable(f"{what} is {describe(value)}; expected a text")
    if not value.strip():
        raise _Unusable(f"{what} is {'only white space' if value else 'empty'}; expected a text")
    if data.max_characters is not None and len(value) > data.max_characters:
        raise _Unusable(
            f"{what} has {len(value)} characters; data.max_characters={data.max_characters} is the most expected"
        )
    if reason := undecodable(value):
        raise _Unusable(f"{what}: {reason}")
    return value
