"""Find training texts that are also evaluation texts: exactly, normalised, or by a run of words."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from grace_exp.data.text_keys import Keys, batches, kept_beside, normalized, row_texts, source_keys, text_key

if TYPE_CHECKING:
    import datasets

    from grace_exp.data.sources import LoadedSource

Mask = NDArray[np.bool_]

VERSION = 1
"""Part of the file's name; raise it when runs of words are found differently."""
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class HeldoutTexts:
    """Digests of the texts of evaluation sets.

    Attributes:
        names: Names of the sets.
        exact: Digests of the texts without outer white space.
        normalized: Digests of the normalised texts.
        words: Digest of every word of the normalised texts.
        runs: Digests of all runs of `length` words of the normalised texts.
        length: Number of words in a run.
    """

    names: tuple[str, ...]
    exact: Keys
    normalized: Keys
    words: Mapping[str, int]
    runs: Keys
    length: int

    @classmethod
    def of(cls, sets: Mapping[str, Iterable[str]], length: int) -> "HeldoutTexts":
        """Digest the texts of evaluation sets, by name of the set."""
        texts = {text for of_set in sets.values() for text in of_set}
        reduced = sorted(map(normalized, texts))
        words = {word: text_key(word) for text in reduced for word in text.split()}
        _, runs = _runs([[text] for text in reduced], words, length)
        return cls(
            tuple(sets),
            _sorted(text_key(text.strip()) for text in texts),
            _sorted(map(text_key, reduced)),
            words,
            np.unique(runs),
            length,
        )

    def overlap(self, source: "LoadedSource") -> dict[str, Mask]:
        """Return which rows hold an evaluation text, by match: `exact`, `normalized` (not exact), `ngram` (neither).

        Args:
            source: A loaded source.
        """
        exact: Mask = np.isin(source_keys(source, "exact"), self.exact).max(axis=1)
        same: Mask = np.isin(source_keys(source, "normalized"), self.normalized).max(axis=1)
        shared = kept_beside(source, f"leaks-{self.digest}-v{VERSION}", self._shared_runs)
        return {"exact": exact, "normalized": same & ~exact, "ngram": shared & ~same & ~exact}

    @property
    def digest(self) -> str:
        """A digest of the texts and the length of a run."""
        content = self.exact.tobytes() + self.runs.tobytes() + str(self.length).encode()
        return hashlib.blake2b(content, digest_size=8).hexdigest()

    def _shared_runs(self, rows: "datasets.Dataset") -> Mask:
        shared = np.zeros(len(rows), dtype=bool)
        start = 0
        for batch in batches(rows) if len(self.runs) else ():
            texts = [[normalized(text) for text in row] for row in row_texts(batch)]
            owners, runs = _runs(texts, self.words, self.length)
            shared[start + owners[np.isin(runs, self.runs)]] = True
            start += len(texts)
        return shared

    def leaks(self, source: "LoadedSource") -> Mask:
        """Which rows hold an evaluation text by any match, [rows]."""
        found = self.overlap(source)
        return found["exact"] | found["normalized"] | found["ngram"]


def _runs(rows: list[list[str]], words: Mapping[str, int], length: int) -> tuple[NDArray[np.int64], Keys]:
    """Return all runs of known words in normalised texts: the row of each run, and its digest."""
    keys: list[int] = []
    owners: list[int] = []
    for row, texts in enumerate(rows):
        for text in texts:
            found = [words.get(word, 0) for word in text.split()]
            if len(found) >= length:
                keys += [*found, 0]  # no run continues into the next text
                owners += [row] * (len(found) + 1)
    if len(keys) < length:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint64)
    words_in_a_row = np.lib.stride_tricks.sliding_window_view(np.array(keys, dtype=np.uint64), length)
    digests = np.zeros(len(words_in_a_row), dtype=np.uint64)
    known = np.ones(len(words_in_a_row), dtype=bool)
    for column in words_in_a_row.T:
        digests = digests * _MULTIPLIER + column
        known &= column != 0
    return np.array(owners, dtype=np.int64)[: len(known)][known], digests[known]


def _sorted(keys: Iterable[int]) -> Keys:
    return np.unique(np.fromiter(keys, dtype=np.uint64))
