"""Read files that may be compressed (.gz, .zst)."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from grace_exp.config.data import COMPRESSED
from grace_exp.errors import DataError


@contextmanager
def open_binary(path: Path) -> Iterator[io.BufferedReader]:
    """Open a file for reading bytes; a compressed file is decompressed.

    Raises:
        DataError: A compressed file is damaged or incomplete.
    """
    if path.suffix not in COMPRESSED:
        with path.open("rb") as plain:
            yield plain
        return
    import pyarrow as pa

    try:
        with pa.input_stream(str(path), compression="detect") as stream:
            yield io.BufferedReader(stream)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: the compressed file is damaged ({str(error).splitlines()[0]})") from error
