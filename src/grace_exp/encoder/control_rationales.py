"""Rationales that a model did not write to a text, to compare its own with: pure functions of token ids."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from grace_exp.errors import DataError
from grace_exp.rollout.protocol import derive_seed

TokenIds = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OwnRationale:
    """What a model wrote to a text.

    Attributes:
        text_ids: Token ids of the text as the prompt holds it.
        rationale_ids: Those of the rationale, with the end token unless it was cut.
    """

    text_ids: TokenIds
    rationale_ids: TokenIds


def control_rationales(
    rationales: Mapping[str, OwnRationale], words: Sequence[TokenIds], end_token_ids: Sequence[int], seed: int
) -> dict[str, dict[str, TokenIds]]:
    """Control rationales of every text, by control.

    Args:
        rationales: Distinct texts with what the model wrote to them.
        words: Token ids of the words that random ones are drawn from.
        end_token_ids: Tokens that end a rationale; the first is used.
        seed: Of who gets whose rationale and, with the text, of its random words. The texts' order plays no part.

    Returns:
        By control, then text: `empty`, `random_words`, `repeated`, `swapped`.

    Raises:
        DataError: There is a single text, so that no other rationale is there to swap with.
    """
    end = end_token_ids[0]
    texts = sorted(rationales)
    partners = partner_of(texts, seed)
    return {
        "empty": {text: empty(end) for text in texts},
        "random_words": {
            text: random_words(rationales[text].rationale_ids, words, end_token_ids, _generator(seed, "words", text))
            for text in texts
        },
        "repeated": {text: repeated(rationales[text].text_ids, end) for text in texts},
        "swapped": {text: rationales[partners[text]].rationale_ids for text in texts},
    }


def empty(end_token_id: int) -> TokenIds:
    """The rationale that says nothing: the end token alone."""
    return (end_token_id,)


def repeated(text_ids: Sequence[int], end_token_id: int) -> TokenIds:
    """The text once more, and the end token."""
    return (*text_ids, end_token_id)


def random_words(
    rationale_ids: Sequence[int],
    words: Sequence[TokenIds],
    end_token_ids: Collection[int],
    generator: np.random.Generator,
) -> TokenIds:
    """Words drawn with equal chances, as many tokens as the rationale has; it ends as the rationale does.

    The last word is cut where the length asks for it.
    """
    ended = tuple(rationale_ids[-1:]) if rationale_ids and rationale_ids[-1] in end_token_ids else ()
    wanted = len(rationale_ids) - len(ended)
    drawn: list[int] = []
    while len(drawn) < wanted:
        drawn += words[int(generator.integers(len(words)))]
    return (*drawn[:wanted], *ended)


def partner_of(texts: Sequence[str], seed: int) -> dict[str, str]:
    """Another text for every text, each once: a random ring through the sorted texts.

    Args:
        texts: Distinct texts, two or more.
        seed: Of the ring.

    Raises:
        DataError: There is a single text.
    """
    if len(texts) < 2:
        raise DataError("controls: another text's rationale needs two different texts or more; the set has one")
    ordered = sorted(texts)
    ring = [ordered[place] for place in _generator(seed, "partners").permutation(len(ordered))]
    return dict(zip(ring, [*ring[1:], ring[0]], strict=True))


def _generator(*parts: int | str) -> np.random.Generator:
    return np.random.default_rng(derive_seed(*parts))
