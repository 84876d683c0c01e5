"""Read local files row by row, so that every problem is reported with file and line."""

import csv
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from grace_exp.data.compressed import open_binary
from grace_exp.errors import DataError


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it is written in the file.

    Attributes:
        line: Number of its first line, from 1; in parquet files and hub data sets the row's number, from 1.
        fields: The values by name.
        raw: The row's text, for the rejects file; empty if only the fields exist.
    """

    line: int
    fields: Mapping[str, object]
    raw: str = ""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used.

    Attributes:
        line: As in `Row`.
        reason: What was found and what is expected.
        raw: The row's text; bytes that are not UTF-8 appear as surrogates.
    """

    line: int
    reason: str
    raw: str


_LONGEST_FIELD = 16 * 1024**2
"""Longest CSV row in characters; a longer one is taken for a quote that is never closed."""

QUOTED_TOO = " (are fields quoted? then set quoting=quoted of the source)"
RENAME = "Other names can be given as query=, positive=, negative= or text= of the source"

Reader = Callable[[Path, tuple[str, ...]], Iterator[Row | BadRow]]
"""Gives the rows of a file, given the required columns. Raises DataError if the file as a whole cannot be read."""


def read_jsonl(path: Path, columns: tuple[str, ...]) -> Iterator[Row | BadRow]:
    """Yield the rows of a file with one JSON object a line; `columns` are checked in each row."""
    example = "{" + ", ".join(f'"{column}": ...' for column in columns) + "}"
    for number, line in _lines(path):
        if reason := undecodable(line):
            yield BadRow(number, reason, line)
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:  # the last two: too many digits, nested too deep
            problem = _json_problem(error) if line.strip() else "the line is blank"
            yield BadRow(number, f"broken JSON ({problem}); expected one object a line: {example}", line)
            continue
        if isinstance(value, dict):
            yield Row(number, value, line)
        else:
            yield BadRow(number, f"found {describe(value)}; expected one object a line: {example}", line)


def _json_problem(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, column {error.colno}"
    return "it is nested too deep" if isinstance(error, RecursionError) else "a number has too many digits"


def read_csv(
    path: Path, columns: tuple[str, ...], *, delimiter: str = ",", quoted: bool = True
) -> Iterator[Row | BadRow]:
    """Yield the rows of a file that begins with a header.

    Args:
        path: The file.
        columns: The required columns.
        delimiter: The character between fields.
        quoted: Whether fields that hold the delimiter, a quote or a line break are quoted (RFC 4180). Otherwise every
            line is a row, and a quote is an ordinary character (IANA's text/tab-separated-values).
    """
    csv.field_size_limit(_LONGEST_FIELD)  # the module's default limit is 131,072 characters, for the whole process
    lines = _LineTape(path, _LONGEST_FIELD)
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    reader = csv.reader(lines, delimiter=delimiter, strict=True, quoting=quoting)
    try:
        header = next(reader, None)
    except csv.Error as error:
        raise DataError(f"{path}, line 1: the header is broken ({error})") from error
    if header is None:
        return
    missing = [column for column in columns if header.count(column) != 1]
    if missing:
        raise DataError(
            f"{path}, line 1: expected the columns {_names(columns)}, each once; found {_names(header)}. {RENAME}"
        )
    while True:
        start = lines.begin_row()
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            expected = "expected fields with quotes in them to be quoted, their quotes doubled"
            # An unclosed quote swallows the following rows: they are read again without its line.
            lines.keep_first()
            reader = csv.reader(lines, delimiter=delimiter, strict=True, quoting=quoting)
            yield BadRow(start, f"broken quoting ({error}); {expected}", lines.raw())
            continue
        if reason := undecodable(lines.raw()):
            yield BadRow(start, reason, lines.raw())
        elif len(values) != len(header):
            hint = (
                ""
                if quoted or '"' not in lines.raw()
                else " (are fields quoted? then set quoting=quoted of the source)"
            )
            reason = f"found {len(values)} columns; expected the {len(header)} of the header{hint}"
            yield BadRow(start, reason, lines.raw())
        else:
            yield Row(start, dict(zip(header, values, strict=True)), lines.raw())


def read_text(path: Path, columns: tuple[str, ...]) -> Iterator[Row | BadRow]:
    """Yield one row for each line; its only field has the name in `columns`."""
    (column,) = columns
    for number, line in _lines(path):
        if reason := undecodable(line):
            yield BadRow(number, reason, line)
        else:
            yield Row(number, {column: line}, line)


def read_parquet(path: Path, columns: tuple[str, ...]) -> Iterator[Row | BadRow]:
    """Yield the rows of a parquet file with the needed columns, read in batches."""
    import pyarrow as pa
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pa.ArrowException as error:
        raise DataError(f"{path} is not a parquet file ({error})") from error
    found = file.schema_arrow.names
    if any(found.count(column) != 1 for column in columns):
        raise DataError(f"{path}: expected the columns {_names(columns)}, each once; found {_names(found)}. {RENAME}")
    number = 0
    with file:
        batches = file.iter_batches(batch_size=1000, columns=list(columns))
        while True:
            try:
                batch = next(batches, None)
            except (pa.ArrowException, OSError) as error:  # a damaged part; later rows cannot be reached
                raise DataError(f"{path}, after row {number}: the file is damaged ({error})") from error
            if batch is None:
                return
            for at in range(batch.num_rows):
                number += 1
                try:
                    yield Row(number, {name: batch.column(name)[at].as_py() for name in columns})
                except UnicodeDecodeError as error:
                    yield BadRow(number, f"{error.reason}, not UTF-8; expected UTF-8 text", repr(error.object))
                except (ValueError, OverflowError, pa.ArrowException) as error:  # times and numbers beyond Python's
                    yield BadRow(number, f"a value cannot be read ({error}); expected a text", "")


def describe(value: object) -> str:
    """Describe a value of JSON, CSV or parquet for messages: `the number 3`, `a list`, `null`."""
    if value is None:
        return "null"
    if isinstance(value, bool | int | float):
        return f"the {'truth value' if isinstance(value, bool) else 'number'} {json.dumps(value)}"
    names: dict[type, str] = {str: "a text", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines with their numbers, without line ends; blank lines at the end of the file are left out.

    Bytes that are not UTF-8 become lone surrogates (PEP 383), so that one bad line does not hide the rest.
    """
    blank: list[tuple[int, str]] = []
    with open_binary(path) as file:
        for number, binary in enumerate(file, start=1):
            line = binary.decode("utf-8-sig" if number == 1 else "utf-8", errors="surrogateescape").rstrip("\r\n")
            if line.strip():
                yield from blank
                blank.clear()
                yield number, line
            else:
                blank.append((number, line))


class _LineTape:
    """Feeds lines to the csv module and remembers those of the present row, which may span several.

    A row of more than `longest` characters is cut off; csv then reports an unclosed quote.
    """

    def __init__(self, path: Path, longest: int) -> None:
        self._lines = _lines(path)
        self._again: deque[tuple[int, str]] = deque()
        self._longest = longest
        self._characters = 0
        self._taken: list[tuple[int, str]] = []
        self._next = 1

    def __iter__(self) -> "_LineTape":
        return self

    def __next__(self) -> str:
        if self._taken and self._characters > self._longest:
            raise StopIteration
        number, line = self._again.popleft() if self._again else next(self._lines)
        self._taken.append((number, line))
        self._characters += len(line)
        return line + "\n"

    def begin_row(self) -> int:
        """Forget the last row, and return the number of the line at which the next row begins."""
        if self._taken:
            self._next = self._taken[-1][0] + 1
        self._taken.clear()
        self._characters = 0
        return self._next

    def keep_first(self) -> None:
        """Put back all lines of the present row except the first, to be read again."""
        self._again.extendleft(reversed(self._taken[1:]))
        del self._taken[1:]

    def raw(self) -> str:
        return "\n".join(line for _, line in self._taken)


def undecodable(text: str) -> str | None:
    """Say what is wrong with a text that cannot be encoded as UTF-8; None if nothing is."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        found = f"byte 0x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"the lone surrogate \\u{code:04x}"
        return f"{found} at character {error.start + 1} is not UTF-8; expected UTF-8 text"
    return None


def _names(columns: tuple[str, ...] | list[str]) -> str:
    return ", ".join(repr(column) for column in columns) or "none"
