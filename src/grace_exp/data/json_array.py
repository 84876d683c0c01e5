"""Read JSON files that hold one array of objects, object by object."""

import codecs
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

from grace_exp.data.compressed import open_binary
from grace_exp.data.lines import BadRow, Row, describe, read_jsonl
from grace_exp.errors import DataError

_DEEPEST = 500
_TOO_DEEP = object()


def read_json(path: Path, columns: tuple[str, ...]) -> Iterator[Row | BadRow]:
    """Yield the objects of a file: the items of an array if it begins with a bracket, otherwise one object a line.

    Rows of an array are numbered from 1. A broken array is an error of the whole file, because no later object can be
    found.

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
            for number, value in enumerate(_items(stream), start=1):
                if value is _TOO_DEEP:
                    yield BadRow(number, "broken JSON (it is nested too deep); expected an object", "")
                elif isinstance(value, dict):
                    yield Row(number, value)
                else:
                    yield BadRow(number, f"found {describe(value)}; expected an object", str(value))
        except (ijson.JSONError, UnicodeDecodeError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(f"{path}, after object {number} of the array: broken JSON ({reason})") from error


def _items(stream: BufferedReader) -> Iterator[object]:
    """Yield the values of the outer array; `_TOO_DEEP` replaces one that is nested deeper than `_DEEPEST`.

    `ijson.items` is not used: it stores the path of every value as text, so its memory grows with the square of the
    depth.
    """
    import ijson

    depth, builder, too_deep = 0, None, False
    for event, value in ijson.basic_parse(stream, use_float=True):
        depth += event in ("start_map", "start_array")
        depth -= event in ("end_map", "end_array")
        if depth == 0 or (depth == 1 and event == "start_array" and builder is None and not too_deep):
            continue  # the outer array
        too_deep = too_deep or depth > _DEEPEST
        if too_deep:
            builder = None
        else:
            builder = builder or ijson.ObjectBuilder()
            builder.event(event, value)
        if depth == 1:
            yield _TOO_DEEP if builder is None else builder.value
            builder, too_deep = None, False


def _holds_an_array(path: Path) -> bool:
    """Whether the first character is a bracket; a file of objects a line begins with a brace."""
    with open_binary(path) as stream:
        _skip_byte_order_mark(stream)
        return stream.peek(4096).lstrip().startswith(b"[")


def _skip_byte_order_mark(stream: BufferedReader) -> None:
    if stream.peek(3).startswith(codecs.BOM_UTF8):
        stream.read(3)
