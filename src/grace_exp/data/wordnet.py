"""The vendored sample of WordNet 3.0 (built by scripts/build_wordnet_triplets.py)."""

import json
from pathlib import Path
from typing import Literal, TypedDict


class WordNetRow(TypedDict):
    """One triplet.

    Attributes:
        query: A usage example of a synset.
        positive: The definition of that synset.
        negative: The definition of another sense of one of its lemmas, or of a sibling.
        synset: Offset and part of speech in WordNet 3.0, such as `07172557-n`.
        lemmas: The words of the synset, case-folded.
        negative_lemmas: The words of the negative's synset.
    """

    query: str
    positive: str
    negative: str
    synset: str
    lemmas: list[str]
    negative_lemmas: list[str]


class WordNetClassRow(TypedDict):
    """One definition with its class.

    Attributes:
        text: The definition of a noun synset of the test split.
        label: WordNet's class of it (the lexicographer file), such as `animal`.
        synset: Offset and part of speech in WordNet 3.0.
    """

    text: str
    label: str
    synset: str


def wordnet_path(split: Literal["train", "dev", "test"]) -> Path:
    """Return the JSONL file of a split; no lemma of one split's synsets occurs in another split."""
    return Path(__file__).with_name("wordnet") / f"{split}.jsonl"


def load_wordnet(split: Literal["train", "dev", "test"]) -> list[WordNetRow]:
    """Return all rows of a split in the order of the file; a hash orders it, so the first rows are a fair sample."""
    with wordnet_path(split).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def load_wordnet_classes() -> list[WordNetClassRow]:
    """Return 60 definitions of each of 10 classes, mixed, so that the first rows are a fair sample."""
    with wordnet_path("test").with_name("classes.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]
