"""Held-out texts for the probe, which no training here has read; they come from packages or from this one."""

from collections.abc import Callable

import numpy as np

_DRAW_SEED = 20250406  # only for this draw: every run gets the same texts, whatever its seed


def _wordnet_glosses() -> list[str]:
    from grace_exp.data.wordnet import load_wordnet

    return [row["positive"] for row in load_wordnet("test")]


def _stsb_sentences() -> list[str]:
    from grace_exp.data.stsb import load_stsb

    pairs, trained_on = load_stsb("dev"), load_stsb("train")
    seen = {*trained_on.sentence1, *trained_on.sentence2}
    return [text for text in (*pairs.sentence1, *pairs.sentence2) if text not in seen]


SOURCES: dict[str, Callable[[], list[str]]] = {
    "wordnet_glosses": _wordnet_glosses,
    "stsb_sentences": _stsb_sentences,
}
"""WordNet's definitions of the test split's synsets, none of whose lemmas is in the training split; and the sentences
of STS Benchmark's dev split that are not in its training split."""


def held_out_texts(name: str, count: int) -> list[str]:
    """Return at most `count` different texts of a source, drawn with a fixed seed."""
    texts = list(dict.fromkeys(SOURCES[name]()))
    order = np.random.default_rng(_DRAW_SEED).permutation(len(texts))
    return [texts[i] for i in order[:count]]
