"""A model card without what no two runs share."""

from grace_exp.training.model_card import without_times

CARD = """# demo
| set | score | ms per text |
|---|---|---|
| stsb | 61.2 | {time} |

Held out: | 7.5 |
| set | before |
|---|---|
| stsb | {score} |
"""


def test_cards_of_two_runs_are_equal_but_for_milliseconds() -> None:
    card = without_times(CARD.format(time=12.5, score=60))
    assert card == without_times(CARD.format(time=9.1, score=60))
    assert card != without_times(CARD.format(time=12.5, score=61))
    assert "61.2" in card and "Held out: | 7.5 |\n" in card and "ms per text" not in card
