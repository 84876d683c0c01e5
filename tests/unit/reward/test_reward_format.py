"""The parser of rationales and what it makes of broken ones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grace_exp.reward import parse_rationale


@pytest.mark.parametrize(
    ("text", "reasoning", "understanding", "score"),
    [
        ("<think>it is about cats</think>Cats.", "it is about cats", "Cats.", 1.0),
        ("\n <think>\nwhy\n</think>\n\nSo.\n", "why", "So.", 1.0),
        # the block is there, and something is missing
        ("<think></think>Cats.", "", "Cats.", 0.75),
        ("<think>why</think>", "why", "", 0.75),
        ("Well. <think>why</think>So.", "why", "So.", 0.75),
        ("<think>a<think>b</think>So.", "a<think>b", "So.", 0.75),
        ("<think>a</think>b</think>c", "a", "b</think>c", 0.75),
        # fallbacks: out of tokens; the chat template opened the block; no block; nothing
        ("<think>still at", "still at", "", 0.5),
        ("why</think>So.", "why", "So.", 0.75),
        ("A text about cats.", "", "A text about cats.", 0.25),
        ("</think>", "", "", 0.25),
        ("a</think><think>b", "b", "", 0.25),
        ("<THINK>a</THINK>b", "", "<THINK>a</THINK>b", 0.25),
        ("", "", "", 0.0),
        (" \n", "", "", 0.0),
    ],
)
def test_rationales_are_split_and_scored(text: str, reasoning: str, understanding: str, score: float) -> None:
    parsed = parse_rationale(text)
    assert (parsed.reasoning, parsed.understanding, parsed.score) == (reasoning, understanding, score)


PIECES = st.lists(st.sampled_from(["<think>", "</think>", " ", "word", "\n"]), max_size=8).map("".join)


@given(PIECES)
def test_parts_come_from_the_text_and_only_the_whole_form_scores_one(text: str) -> None:
    parsed = parse_rationale(text)
    assert parsed.reasoning in text and parsed.understanding in text
    rebuilt = f"<think>{parsed.reasoning}</think>{parsed.understanding}"
    whole = (
        parsed.reasoning != "" and parsed.understanding != "" and text.count("<think>") == text.count("</think>") == 1
    )
    assert (parsed.score == 1) == (whole and "".join(text.split()) == "".join(rebuilt.split()))
