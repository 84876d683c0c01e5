"""Describes a recipe: rows, rejected rows by reason, lengths, duplicates, leaks, examples."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grace_exp.data.cleaning import REASONS, CleanedSource
from grace_exp.data.leaks import HeldoutTexts
from grace_exp.data.sources import LoadedSource
from grace_exp.data.text_keys import batches, row_texts
from grace_exp.data.token_lengths import TokenLengths

_DETAILS = re.compile(r"(?<!field )'[^']*'|\\u[0-9a-f]{4}|0x[0-9a-f]{2}|\d[\d,.]*")
_BINS = (0, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_EXAMPLES = 3
_EXAMPLE_CHARACTERS = 300


@dataclass(frozen=True)
class LengthSummary:
    """Token counts of the texts of one role: number of texts, quantiles, and a histogram.

    Attributes:
        texts: Number of texts.
        mean: Mean number of tokens.
        quantiles: Numbers of tokens at 50, 90, 99 and 100 %.
        histogram: Number of texts from each bin's lower end to the next, by lower end.
        cut: Number of texts that do not fit into `prompt.max_tokens`.
    """

    texts: int
    mean: float
    quantiles: Mapping[str, float]
    histogram: Mapping[int, int]
    cut: int


def rejected_by_reason(rejects: Path) -> dict[str, int]:
    """Returns the number of bad rows by reason (`reason_kind`), most frequent first.

    Args:
        rejects: The file of rejected rows; if it does not exist, the result is {}.
    """
    counts: Counter[str] = Counter()
    if rejects.is_file():
        with rejects.open(encoding="utf-8") as lines:
            counts.update(reason_kind(json.loads(line)["reason"]) for line in lines)
    return dict(counts.most_common())


def reason_kind(reason: str) -> str:
    """Returns a reason without what differs between rows: numbers, quoted values, found and expected values."""
    return " ".join(_DETAILS.sub("...", reason.split("; ")[0].split(": found")[0]).split())


def length_summary(lengths: TokenLengths, role: str) -> LengthSummary | None:
    """Returns the lengths of the texts of a role; None if there are none."""
    counts: NDArray[np.int32] = lengths.of(role)
    counts = counts[counts >= 0]
    if not len(counts):
        return None
    histogram, _ = np.histogram(counts, bins=[*_BINS, np.iinfo(np.int32).max])
    at = np.quantile(counts, [0.5, 0.9, 0.99, 1.0])
    return LengthSummary(
        texts=len(counts),
        mean=float(counts.mean()),
        quantiles=dict(zip(("50 %", "90 %", "99 %", "100 %"), map(float, at), strict=True)),
        histogram={low: int(count) for low, count in zip(_BINS, histogram, strict=True)},
        cut=int((counts > lengths.room[role]).sum()),  # type: ignore[index]  # roles are texts
    )


def describe_source(
    source: LoadedSource,
    dropped: CleanedSource,
    standard: CleanedSource,
    lengths: TokenLengths | None,
    heldout: HeldoutTexts | None,
) -> dict[str, Any]:
    """Returns a description of one source, as plain data.

    Args:
        source: All usable rows.
        dropped: What remains of the source after the configured filters.
        standard: What would remain with `data.clean=standard`.
        lengths: Token lengths of its texts; None: not counted.
        heldout: Evaluation texts; None: not compared.
    """
    roles = ("positive",) if "text" in source.rows.column_names else ("query", "positive", "negative")
    found: dict[str, Any] = {
        "usable": len(source.rows),
        "rejected": source.rejected,
        "kept": len(dropped.source.rows),
        "dropped": dict(dropped.source.dropped),
        "standard_would_drop": dict(standard.source.dropped),
        "examples_of_dropped": {
            reason: [asdict(example) for example in examples]
            for reason, examples in (dropped.examples or standard.examples).items()
        },
        "first_instances": _first(source),
    }
    if lengths is not None:
        summaries = {role: length_summary(lengths, role) for role in roles}
        found["tokens"] = {role: asdict(summary) for role, summary in summaries.items() if summary is not None}
    if heldout is not None:
        found["leaks"] = {how: int(rows.sum()) for how, rows in heldout.overlap(source).items()}
    return found


def _first(source: LoadedSource) -> list[list[str]]:
    batch = next(iter(batches(source.rows)))
    return [[text[:_EXAMPLE_CHARACTERS] for text in texts] for texts in list(row_texts(batch))[:_EXAMPLES]]


def reason_texts(reasons: Sequence[str]) -> dict[str, str]:
    """Returns the meanings of the names of reasons."""
    return {reason: REASONS[reason] for reason in reasons}
