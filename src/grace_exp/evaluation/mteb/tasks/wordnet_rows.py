"""The held-out rows that several WordNet tasks use."""

import hashlib

from grace_exp.data.wordnet import WordNetRow, load_wordnet, wordnet_path
from grace_exp.evaluation.mteb.tasks.common import short

WORDNET_REFERENCE = "https://wordnet.princeton.edu/"


def held_out_rows(size: int | None) -> list[WordNetRow]:
    """Return rows of the test split: all, or the first `size` with short texts (the file's order is a fair sample)."""
    rows = load_wordnet("test")
    if size is None:
        return rows
    return [row for row in rows if short(row["query"], row["positive"], row["negative"])][:size]


def wordnet_revision(file: str, size: int | None = None) -> str:
    """Return the data's revision: a digest of the file, and how much of it is used."""
    content = hashlib.sha256(wordnet_path("test").with_name(file).read_bytes()).hexdigest()[:12]
    return content if size is None else f"{content}-{size}"
