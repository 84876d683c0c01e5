"""Digests of texts, which find equal texts among millions without storing them."""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from grace_exp.tracking.atomic import atomic_path

if TYPE_CHECKING:
    import datasets

    from grace_exp.data.sources import LoadedSource

Form = Literal["exact", "normalized"]
Keys = NDArray[np.uint64]

VERSION = 1
"""Part of the file's name; raise it when texts are normalised or digested differently."""

_WORDS = re.compile(r"\w+")
_ROWS_AT_ONCE = 10_000


def normalized(text: str) -> str:
    """Return the words of a text in NFKC form and lower case, separated by blanks; its characters if it has no word."""
    folded = (text if text.isascii() else unicodedata.normalize("NFKC", text)).casefold()
    return " ".join(_WORDS.findall(folded)) or folded.strip()


def text_key(text: str) -> int:
    """Return a 64-bit digest of a text; 0 stands for no text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") or 1


def row_texts(batch: dict[str, Any]) -> Iterator[list[str]]:
    """Yield the texts of the rows of a `datasets` batch: [query, positive, *negatives], or [text]."""
    if "text" in batch:
        yield from ([text] for text in batch["text"])
        return
    for query, positive, negatives in zip(batch["query"], batch["positive"], batch["negatives"], strict=True):
        yield [query, positive, *negatives]


def batches(rows: "datasets.Dataset") -> Iterator[dict[str, Any]]:
    """Yield the rows in batches, as columns."""
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        yield rows[start : start + _ROWS_AT_ONCE]


def source_keys(source: "LoadedSource", form: Form) -> Keys:
    """Return digests of a source's texts, [rows, texts]: query, positive, negatives; 0 where a row has fewer.

    The digests are stored beside the prepared rows.

    Args:
        source: A source from `load_source`, or cleaned.
        form: Whether the texts are stripped of outer white space only, or also normalised.
    """
    return kept_beside(source, f"keys-{form}-v{VERSION}", partial(_digests, form=form))


def kept_beside(
    source: "LoadedSource", name: str, compute: Callable[["datasets.Dataset"], NDArray[Any]]
) -> NDArray[Any]:
    """Return an array with a row for each row of a source; it is computed once and stored beside the prepared rows.

    Args:
        source: A source from `load_source`; or a cleaned one, for which the array has its remaining rows.
        name: Name of the file, which includes everything that the array depends on except the rows.
        compute: Returns the array of all prepared rows.
    """
    import datasets

    prepared = Path(source.rows.cache_files[0]["filename"])
    file = prepared.with_name(f"{name}.npy")
    if not file.is_file():
        with atomic_path(file) as unfinished, unfinished.open("wb") as stream:
            np.save(stream, compute(datasets.Dataset.from_file(str(prepared))))
    array: NDArray[Any] = np.load(file)
    return array if source.kept is None else array[source.kept]


def _digests(rows: "datasets.Dataset", form: Form) -> Keys:
    reduce = str.strip if form == "exact" else normalized
    parts = []
    for batch in batches(rows):
        digests = [[text_key(reduce(text)) for text in texts] for texts in row_texts(batch)]
        part = np.zeros((len(digests), max(map(len, digests))), dtype=np.uint64)
        for row, found in enumerate(digests):
            part[row, : len(found)] = found
        parts.append(part)
    return joined(parts)


def joined(parts: Sequence[Keys]) -> Keys:
    """Return the keys of several sources as one array, [rows, texts]; narrower ones are padded with 0."""
    width = max(part.shape[1] for part in parts)
    return np.concatenate([np.pad(part, ((0, 0), (0, width - part.shape[1]))) for part in parts])


def row_keys(keys: Keys) -> Keys:
    """Return one digest for all texts of each row, [rows]; it depends on their order."""
    mixed = np.zeros(len(keys), dtype=np.uint64)
    for column in keys.T:
        # The finaliser of splitmix64 makes equal sums of different texts unlikely.
        mixed = (mixed ^ column) * np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(27)
        mixed *= np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return mixed
