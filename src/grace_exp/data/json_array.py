"""JSON files that hold one array of objects, read object by object."""

import codecs
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

from grace_exp.data.compressed import open_binary
from grace_exp.data.lines import BadRow, Row, describe, read_jsonl
from grace_exp.errors import DataError


def read_json(path: Path, columns: tuple[str, ...]) -> Iterator[Row | BadRow]:
    """The objects of a file: of an array if it begins with a bracket, otherwise one a line.

    Rows of an array are numbered from 1; an array that breaks off is an error of the whole file, for no later object
    can be found.

    Raises:
        DataError: The array is broken.
    """
    if not _holds_an_array(path):
        yield from read_jsonl(path, columns)
        return
    import ijson

    with open_binary(path) as stream:
        _skip_byte_order_mark(stream)
        number = 0
        try:
            for number, value in enumerate(ijson.items(stream, "item", use_float=True), start=1):
                if isinstance(value, dict):
                    yield Row(number, value)
                else:
                    yield BadRow(number, f"found {describe(value)}; expected an object", str(value))
        except (ijson.JSONError, UnicodeDecodeError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(f"{path}, behind object {number} of the array: broken JSON ({reason})") from error


def _holds_an_array(path: Path) -> bool:
    """Whether the first character is a bracket; lines of objects begin with a brace."""
    with open_binary(path) as stream:
        _skip_byte_order_mark(stream)
        return stream.peek(4096).lstrip().startswith(b"[")


def _skip_byte_order_mark(stream: BufferedReader) -> None:
    if stream.peek(3).startswith(codecs.BOM_UTF8):
        stream.read(3)
