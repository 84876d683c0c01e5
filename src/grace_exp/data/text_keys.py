"""Digests of texts, so that equal texts are found among millions without holding them."""

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
"""Part of the file's name: raise it when texts are normalised or digested differently."""

_WORDS = re.compile(r"\w+")
_ROWS_AT_ONCE = 10_000


def normalized(text: str) -> str:
    """The words of a text in NFKC form and lower case, a blank between two; a text without words: its characters."""
    folded = (text if text.isascii() else unicodedata.normalize("NFKC", text)).casefold()
    return " ".join(_WORDS.findall(folded)) or folded.strip()


def text_key(text: str) -> int:
    """A 64-bit digest of a text; 0 stands for no text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") or 1


def row_texts(batch: dict[str, Any]) -> Iterator[list[str]]:
    """The texts of the rows of a `datasets` batch: [query, positive, *negatives], or [text]."""
    if "text" in batch:
        yield from ([text] for text in batch["text"])
        return
    for query, positive, negatives in zip(batch["query"], batch["positive"], batch["negatives"], strict=True):
        yield [query, positive, *negatives]


def batches(rows: "datasets.Dataset") -> Iterator[dict[str, Any]]:
    """The rows in batches, as columns."""
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        yield rows[start : start + _ROWS_AT_ONCE]


def source_keys(source: "LoadedSource", form: Form) -> Keys:
    """Digests of a source's texts, [rows, texts]: query, positive, negatives; 0 where a row has fewer.

    They are kept beside the prepared rows.

    Args:
        source: As `load_source` gives it, or cleaned.
        form: Of the texts: stripped of outer white space, or normalised as well.
    """
    return kept_beside(source, f"keys-{form}-v{VERSION}", partial(_digests, form=form))


def kept_beside(
    source: "LoadedSource", name: str, compute: Callable[["datasets.Dataset"], NDArray[Any]]
) -> NDArray[Any]:
    """An array with a row for each row of a source, computed once and kept beside the prepared rows.

    Args:
        source: As `load_source` gives it, or cleaned: then the array of its remaining rows.
        name: Of the file, with everything that the array depends on beside the rows.
        compute: Gives the array of all prepared rows.
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
    """The keys of several sources as one array, [rows, texts], 0 behind the texts of narrower ones."""
    width = max(part.shape[1] for part in parts)
    return np.concatenate([np.pad(part, ((0, 0), (0, width - part.shape[1]))) for part in parts])


def row_keys(keys: Keys) -> Keys:
    """One digest of all texts of each row, [rows]; the order of the texts counts."""
    mixed = np.zeros(len(keys), dtype=np.uint64)
    for column in keys.T:
        # The finaliser of splitmix64: equal sums of different texts become unlikely.
        mixed = (mixed ^ column) * np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(27)
        mixed *= np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return mixed
