"""Rows from a reader that the user writes: a function from `path` to dicts."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import partial

from grace_exp.config.data import SourceConfig
from grace_exp.config.own_parts import OwnPart
from grace_exp.config.used_parts import reader_part
from grace_exp.data.lines import BadRow, Row, describe
from grace_exp.errors import DataError


def digest_of_own_rows(name: str, source: SourceConfig) -> str:
    """Return a digest of all rows that the reader gives. It reads them once; they are read again if no cache has them.

    Raises:
        ConfigError: There is no such function.
        DataError: The reader raised.
    """
    digest = hashlib.sha256()
    for row in read_own(name, source):
        digest.update(repr(row).encode())
    return digest.hexdigest()


def read_own(name: str, source: SourceConfig) -> Iterator[Row | BadRow]:
    """Yield the rows of the reader, numbered from 1; anything but a dict of columns is a bad row.

    Raises:
        ConfigError: There is no such function.
        DataError: The reader raised.
    """
    assert source.reader is not None and isinstance(source.path, str)
    part = reader_part(name, source.reader)
    rows = _rows(part, source.path)
    for number, row in enumerate(rows, start=1):
        if isinstance(row, Mapping):
            yield Row(number, {str(column): value for column, value in row.items()})
        else:
            raw = json.dumps(row, default=str)
            yield BadRow(number, f"the reader gave {describe(row)}; expected a dict by column", raw)


def _rows(part: OwnPart, path: str) -> Iterator[object]:
    read = partial(part.load(), path)
    try:
        yield from read()
    except Exception as error:  # the user's function may raise anything
        raise DataError(f"{part.key} ({part.path}: {part.name}) raised {type(error).__name__}: {error}") from error
