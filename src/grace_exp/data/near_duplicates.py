"""Find texts that are nearly equal, by MinHash over word trigrams (Broder, 1997; package datasketch)."""

from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from grace_exp.data.text_keys import normalized
from grace_exp.errors import MissingResourceError

PERMUTATIONS = 64
"""Number of permutations of a MinHash: the estimated similarity has a standard error of at most 0.0625."""
_GRAM = 3
_ROWS_AT_ONCE = 1000


def near_duplicate_rows(
    texts: Iterable[Sequence[str]], usable: NDArray[np.bool_], threshold: float
) -> NDArray[np.bool_]:
    """Return which rows are nearly equal to an earlier row that stays.

    Args:
        texts: The texts of every row.
        usable: Which rows are compared, [rows]; the others are ignored.
        threshold: Estimated Jaccard similarity of word trigrams from which two rows count as nearly equal.

    Raises:
        MissingResourceError: The package is not installed.
    """
    try:
        from datasketch import MinHash, MinHashLSH
    except ModuleNotFoundError as error:
        raise MissingResourceError(
            "data.filters.near_duplicates needs the package datasketch: pip install datasketch"
        ) from error
    index, kept = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS), dict[int, MinHash]()
    found = np.zeros(len(usable), dtype=bool)
    chosen = ((row, row_texts) for row, row_texts in enumerate(texts) if usable[row])
    while rows := list(islice(chosen, _ROWS_AT_ONCE)):
        hashes = MinHash.bulk([_trigrams(row_texts) for _, row_texts in rows], num_perm=PERMUTATIONS)
        for (row, _), minhash in zip(rows, hashes, strict=True):
            # The index looks rows up by bands, so it also returns some that are less similar.
            if any(minhash.jaccard(kept[other]) >= threshold for other in index.query(minhash)):
                found[row] = True
            else:
                index.insert(row, minhash, check_duplication=False)
                kept[row] = minhash
    return found


def _trigrams(texts: Sequence[str]) -> list[bytes]:
    """Return the word trigrams of the normalised texts; a shorter text is one piece."""
    grams = []
    for place, text in enumerate(texts):
        words = normalized(text).split()
        starts = range(max(1, len(words) - _GRAM + 1))
        grams += [f"{place} {' '.join(words[start : start + _GRAM])}".encode() for start in starts]
    return grams
