"""Control rationales: what they hold, and that they are the same every time."""

import numpy as np
import pytest

from grace_exp.encoder.control_rationales import OwnRationale, control_rationales, partner_of, random_words
from grace_exp.errors import DataError

END = 2
OWN = {
    "a cat": OwnRationale((10, 11), (50, 51, 52, END)),
    "a dog": OwnRationale((10, 12), (60, END)),
    "rain": OwnRationale((13,), (70, 71, 72, 73, 74)),  # cut: no end token
}
WORDS = [(100,), (101, 102), (103, 104, 105)]


def test_empty_is_the_end_token_and_repeated_the_text_with_it() -> None:
    controls = control_rationales(OWN, WORDS, [END, 3], seed=0)
    assert controls["empty"] == {"a cat": (END,), "a dog": (END,), "rain": (END,)}
    assert controls["repeated"] == {"a cat": (10, 11, END), "a dog": (10, 12, END), "rain": (13, END)}


def test_random_words_are_as_long_as_the_rationale_and_end_as_it_does() -> None:
    drawn = control_rationales(OWN, WORDS, [END], seed=0)["random_words"]
    for text, own in OWN.items():
        ids = own.rationale_ids
        assert len(drawn[text]) == len(ids) and (drawn[text][-1] == END) == (ids[-1] == END)
        assert {token for token in drawn[text] if token != END} <= {token for word in WORDS for token in word}


def test_words_are_drawn_with_equal_chances() -> None:
    drawn = random_words(range(1000, 31000), [(7,), (8,), (9,)], [END], np.random.default_rng(0))
    shares = np.unique(drawn, return_counts=True)[1] / len(drawn)
    assert shares == pytest.approx([1 / 3] * 3, abs=0.015)  # five standard errors


def test_swapped_gives_every_rationale_to_another_text_once() -> None:
    swapped = control_rationales(OWN, WORDS, [END], seed=0)["swapped"]
    assert sorted(swapped.values()) == sorted(own.rationale_ids for own in OWN.values())
    assert all(swapped[text] != own.rationale_ids for text, own in OWN.items())


@pytest.mark.parametrize("texts", [2, 3, 40])
@pytest.mark.parametrize("seed", range(5))
def test_partners_are_one_ring(texts: int, seed: int) -> None:
    partners = partner_of([f"text {number}" for number in range(texts)], seed)
    seen, text = [], "text 0"
    for _ in range(texts):
        text = partners[text]
        seen.append(text)
    assert len(set(seen)) == texts and seen[-1] == "text 0"


def test_controls_depend_on_the_seed_and_not_on_the_order_of_the_texts() -> None:
    backwards = dict(reversed(OWN.items()))
    assert control_rationales(OWN, WORDS, [END], seed=0) == control_rationales(backwards, WORDS, [END], seed=0)
    assert control_rationales(OWN, WORDS, [END], seed=0) != control_rationales(OWN, WORDS, [END], seed=1)


def test_a_single_text_has_nobody_to_swap_with() -> None:
    with pytest.raises(DataError, match="two different texts or more"):
        partner_of(["alone"], 0)
