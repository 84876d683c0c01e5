"""Leave out instances that training would not gain from, and report how many and which.

Sources are filtered in the recipe's order. The first filter that an instance fails counts as the reason. An instance
is compared with those earlier ones that have passed all filters before.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from grace_exp.config.filters import FiltersConfig, TokenLimits
from grace_exp.data.leaks import HeldoutTexts
from grace_exp.data.near_duplicates import near_duplicate_rows
from grace_exp.data.sources import LoadedSource
from grace_exp.data.text_keys import Form, Keys, batches, joined, row_keys, row_texts, source_keys
from grace_exp.data.token_lengths import TokenLengths
from grace_exp.errors import DataError, MissingResourceError

if TYPE_CHECKING:
    import datasets

Mask = NDArray[np.bool_]

EXAMPLES = 5
"""Examples kept for each reason."""
EXAMPLE_CHARACTERS = 200

REASONS = {
    "query_is_positive": "the query equals the positive",
    "query_is_negative": "the query equals a negative",
    "positive_is_negative": "the positive equals a negative",
    "pattern": "a text lacks data.filters.keep_pattern or contains data.filters.drop_pattern",
    "language": "a text is in none of data.filters.languages",
    "cut": "a text does not fit into prompt.max_tokens",
    "too_short": "a text has fewer tokens than data.filters.min_tokens",
    "too_long": "a text has more tokens than data.filters.max_tokens",
    "duplicate": "all texts occurred together in an earlier instance",
    "repeated_text": "the query or the positive occurred in an earlier instance",
    "near_duplicate": "the texts are nearly those of an earlier instance",
    "leak": "a text is an evaluation text",
}
"""Why an instance is left out, by name, in the order of the filters."""


@dataclass(frozen=True)
class Example:
    """An instance that was left out: its number among the source's usable rows (from 1), and its shortened texts."""

    row: int
    texts: tuple[str, ...]


@dataclass(frozen=True)
class CleanedSource:
    """A source without the instances that filters leave out.

    Attributes:
        source: The source with the remaining rows, their digest, and the number of rows left out by reason.
        examples: Some of the rows left out, by reason.
    """

    source: LoadedSource
    examples: Mapping[str, Sequence[Example]]


def clean(
    sources: Mapping[str, LoadedSource],
    filters: FiltersConfig,
    *,
    lengths: Callable[[LoadedSource], TokenLengths] | None = None,
    heldout: HeldoutTexts | None = None,
) -> dict[str, CleanedSource]:
    """Apply all filters to all sources.

    Args:
        sources: By name, in the recipe's order.
        filters: The filters, with the preset's values filled in.
        lengths: Returns the token lengths of a source's texts; needed if `filters.needs_tokens`.
        heldout: Evaluation texts; instances with one are left out. None: they stay.

    Raises:
        DataError: No instance of a source is left.
        MissingResourceError: A filter needs a package that is not installed.
    """
    state = _Recipe(sources)
    tokens: dict[str, TokenLengths] = {}
    if filters.needs_tokens:
        assert lengths is not None
        tokens = {name: lengths(source) for name, source in sources.items()}
    for name, drop in _filters(state, filters, tokens, heldout):
        state.drop(name, drop)
    found = {name: state.cleaned(name) for name in sources}
    for name, cleaned in found.items():
        if not len(cleaned.source.rows):
            counts = ", ".join(f"{count} {reason}" for reason, count in cleaned.source.dropped.items())
            raise DataError(f"data.sources.{name}: data.clean and data.filters leave no instance ({counts})")
    return found


class _Recipe:
    """All sources as one sequence of rows, and the reason why each row is left out, if it is."""

    def __init__(self, sources: Mapping[str, LoadedSource]) -> None:
        self.sources = sources
        self.supervised = np.concatenate(
            [np.full(len(source.rows), "query" in source.rows.column_names) for source in sources.values()]
        )
        ends = np.cumsum([len(source.rows) for source in sources.values()])
        self._rows = {name: slice(end - len(s.rows), end) for (name, s), end in zip(sources.items(), ends, strict=True)}
        self._reasons = np.full(len(self.supervised), -1, dtype=np.int8)
        self._keys: dict[str, Keys] = {}

    def keys(self, form: Form) -> Keys:
        if form not in self._keys:
            self._keys[form] = joined([source_keys(source, form) for source in self.sources.values()])
        return self._keys[form]

    @property
    def left(self) -> Mask:
        """Which rows have passed every filter so far."""
        return self._reasons < 0

    def drop(self, reason: str, rows: Mask) -> None:
        self._reasons[rows & self.left] = list(REASONS).index(reason)

    def texts(self) -> Iterator[list[str]]:
        """Yield the texts of all rows."""
        for source in self.sources.values():
            for batch in batches(source.rows):
                yield from row_texts(batch)

    def by_row(self, values: Mapping[str, Mask]) -> Mask:
        return np.concatenate([values[name] for name in self.sources])

    def cleaned(self, name: str) -> CleanedSource:
        source, reasons = self.sources[name], self._reasons[self._rows[name]]
        kept = np.flatnonzero(reasons < 0)
        dropped = {reason: int((reasons == code).sum()) for code, reason in enumerate(REASONS)}
        dropped = {reason: count for reason, count in dropped.items() if count}
        if not dropped:
            return CleanedSource(source, {})
        examples = {
            reason: [
                _example(source.rows, int(row))
                for row in np.flatnonzero(reasons == list(REASONS).index(reason))[:EXAMPLES]
            ]
            for reason in dropped
        }
        digest = hashlib.sha256(source.digest.encode() + np.packbits(reasons < 0).tobytes()).hexdigest()
        return CleanedSource(
            replace(source, rows=source.rows.select(kept), digest=digest, kept=kept, dropped=dropped), examples
        )


def _example(rows: "datasets.Dataset", row: int) -> Example:
    (texts,) = row_texts(rows[row : row + 1])
    return Example(row + 1, tuple(text[:EXAMPLE_CHARACTERS] for text in texts))


def _filters(
    recipe: _Recipe, filters: FiltersConfig, lengths: Mapping[str, TokenLengths], heldout: HeldoutTexts | None
) -> Iterator[tuple[str, Mask]]:
    """Yield the filters in their order: the reason, and the rows that fail."""
    if filters.same_texts:
        keys = recipe.keys("normalized")
        query, negatives = keys[:, :1], keys[:, 2:]
        is_pair = recipe.supervised
        yield "query_is_positive", is_pair & (keys[:, 0] == keys[:, min(1, keys.shape[1] - 1)])
        yield "query_is_negative", is_pair & (negatives == query).any(axis=1)
        yield "positive_is_negative", is_pair & (negatives == keys[:, 1:2]).any(axis=1)
    if filters.keep_pattern is not None or filters.drop_pattern is not None:
        yield "pattern", _by_text(recipe, _pattern_test(filters))
    if filters.languages:
        yield "language", _by_text(recipe, _language_test(filters.languages))
    if filters.uncut:
        cut = {name: found.cut(filters.uncut) for name, found in lengths.items()}
        yield "cut", recipe.by_row(cut)
    for reason, limits, shorter in (("too_short", filters.min_tokens, True), ("too_long", filters.max_tokens, False)):
        if limits:
            yield reason, recipe.by_row({name: _outside(found, limits, shorter) for name, found in lengths.items()})
    if filters.duplicates not in (None, "keep"):
        yield "duplicate", _seen_before(row_keys(recipe.keys(_form(filters.duplicates))), recipe.left)
    if filters.repeated_texts not in (None, "keep"):
        yield "repeated_text", _repeats_a_text(recipe.keys(_form(filters.repeated_texts))[:, :2], recipe.left)
    if filters.near_duplicates is not None:
        yield "near_duplicate", near_duplicate_rows(recipe.texts(), recipe.left, filters.near_duplicates)
    if heldout is not None:
        yield "leak", np.concatenate([heldout.leaks(source) for source in recipe.sources.values()])


def _form(setting: str | None) -> Form:
    return "exact" if setting == "exact" else "normalized"


def _seen_before(keys: Keys, usable: Mask) -> Mask:
    """Which usable rows have the key of an earlier usable row."""
    rows = np.flatnonzero(usable)
    _, first = np.unique(keys[rows], return_index=True)
    repeated = np.ones(len(rows), dtype=bool)
    repeated[first] = False
    found = np.zeros(len(keys), dtype=bool)
    found[rows[repeated]] = True
    return found


def _repeats_a_text(keys: Keys, usable: Mask) -> Mask:
    """Which rows hold a text (not 0) that an earlier kept row holds."""
    found = np.zeros(len(keys), dtype=bool)
    seen: set[int] = set()
    for row in np.flatnonzero(usable):
        texts = {int(key) for key in keys[row] if key}
        if texts & seen:
            found[row] = True
        else:
            seen |= texts
    return found


def _by_text(recipe: _Recipe, passes: Callable[[str], bool]) -> Mask:
    """Which rows have a text that fails the test."""
    return np.fromiter((not all(map(passes, texts)) for texts in recipe.texts()), dtype=bool)


def _pattern_test(filters: FiltersConfig) -> Callable[[str], bool]:
    keep = re.compile(filters.keep_pattern) if filters.keep_pattern is not None else None
    drop = re.compile(filters.drop_pattern) if filters.drop_pattern is not None else None
    return lambda text: (keep is None or keep.search(text) is not None) and (drop is None or drop.search(text) is None)


def _language_test(languages: Sequence[str]) -> Callable[[str], bool]:
    try:
        import py3langid
    except ModuleNotFoundError as error:
        raise MissingResourceError(
            "data.filters.languages needs the package py3langid: pip install py3langid"
        ) from error
    return lambda text: py3langid.classify(text)[0] in languages


def _outside(lengths: TokenLengths, limits: TokenLimits, shorter: bool) -> Mask:
    found = np.zeros(len(lengths.query), dtype=bool)
    for role in ("query", "positive", "negative"):
        limit = getattr(limits, role)
        if limit is not None:
            found |= lengths.outside(role, limit, shorter=shorter)
    return found
