"""Control rationales, to compare a model's own with: pure functions of token ids."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from grace_exp.errors import DataError
from grace_exp.rollout.protocol import derive_seed

TokenIds = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OwnRationale:
    """A text with the rationale that a model wrote for it.

    Attributes:
        text_ids: Token ids of the text in the prompt.
        rationale_ids: Token ids of the rationale, with the end token unless it was cut.
    """

    text_ids: TokenIds
    rationale_ids: TokenIds


def control_rationales(
    rationales: Mapping[str, OwnRationale], words: Sequence[TokenIds], end_token_ids: Sequence[int], seed: int
) -> dict[str, dict[str, TokenIds]]:
    """Return control rationales of every text, by control.

    Args:
        rationales: Distinct texts with the model's rationales.
        words: Token ids of the words from which random ones are drawn.
        end_token_ids: Tokens that end a rationale; the first is used.
        seed: Seed of the exchange of rationales and, with the text, of its random words. The texts' order has no
            effect.

    Returns:
        Rationales by control and text: `empty`, `random_words`, `repeated`, `swapped`.

    Raises:
        DataError: There is only one text, so there is no other rationale to swap with.
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
    """Return the empty rationale: only the end token."""
    return (end_token_id,)


def repeated(text_ids: Sequence[int], end_token_id: int) -> TokenIds:
    """Return the text again, and the end token."""
    return (*text_ids, end_token_id)


def random_words(
    rationale_ids: Sequence[int],
    words: Sequence[TokenIds],
    end_token_ids: Collection[int],
    generator: np.random.Generator,
) -> TokenIds:
    """Return words drawn uniformly, with as many tokens as the rationale; it ends as the rationale does.

    The last word is cut if necessary.
    """
    ended = tuple(rationale_ids[-1:]) if rationale_ids and rationale_ids[-1] in end_token_ids else ()
    wanted = len(rationale_ids) - len(ended)
    drawn: list[int] = []
    while len(drawn) < wanted:
        drawn += words[int(generator.integers(len(words)))]
    return (*drawn[:wanted], *ended)


def partner_of(texts: Sequence[str], seed: int) -> dict[str, str]:
    """Return another text for every text, each once: a random cycle through the sorted texts.

    Args:
        texts: Distinct texts, two or more.
        seed: Seed of the cycle.

    Raises:
        DataError: There is only one text.
    """
    if len(texts) < 2:
        raise DataError("controls: another text's rationale needs two different texts or more; the set has one")
    ordered = sorted(texts)
    ring = [ordered[place] for place in _generator(seed, "partners").permutation(len(ordered))]
    return dict(zip(ring, [*ring[1:], ring[0]], strict=True))


def _generator(*parts: int | str) -> np.random.Generator:
    return np.random.default_rng(derive_seed(*parts))
