"""The verdict on a run agrees with its figures."""

from pathlib import Path
from typing import Any

import pytest
from scipy.stats import ttest_ind

from grace_exp.review.run_files import read_run
from grace_exp.review.verdict import verdict

REWARD = {"reward/total/mean": [0.1, 0.2, 0.15, 0.2, 0.3, *[0.5] * 15, 0.8, 0.9, 0.85, 0.9, 1.0]}


def heldout(rise: tuple[float, float, float], name: str = "stsb") -> dict[str, Any]:
    figures = {"before": (50.0, 40.0, 60.0), "after": (50.0 + rise[0], 40.0, 60.0), "rise": rise}
    return {name: {key: dict(zip(("value", "low", "high"), of, strict=True)) for key, of in figures.items()}}


@pytest.mark.parametrize(
    ("rise", "tone", "words"),
    [
        ((11.7, 3.4, 21.0), "better", "It learned: stsb (Spearman x 100, held-out) rose by 11.7 [3.4, 21.0] points"),
        ((-5.0, -9.0, -1.0), "worse", "It got worse: stsb (Spearman x 100, held-out) fell by 5.0 [1.0, 9.0] points"),
        ((4.0, -2.0, 9.0), "unclear", "No clear change: stsb (Spearman x 100, held-out) changed by 4.0 [-2.0, 9.0]"),
    ],
)
def test_a_held_out_set_decides(tmp_path: Path, make_run: Any, rise: Any, tone: str, words: str) -> None:
    found = verdict(read_run(make_run(tmp_path, REWARD, heldout=heldout(rise) | heldout((1.0, 0.5, 2.0), "wordnet"))))
    assert found.tone == tone and found.sentence.startswith(words)
    assert (found.value, found.low, found.high) == rise
    assert "from 50.0 to" in found.sentence and "wordnet by 1.0 [0.5, 2.0]" in found.sentence


def test_without_a_set_the_reward_decides_with_welchs_interval(tmp_path: Path, make_run: Any) -> None:
    found = verdict(read_run(make_run(tmp_path, REWARD, heldout={})))
    values = REWARD["reward/total/mean"]
    expected = ttest_ind(values[-5:], values[:5], equal_var=False).confidence_interval()
    assert found.tone == "better" and found.value == pytest.approx(0.7)
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert "It trains: the reward changed by 0.700" in found.sentence and "No held-out set" in found.sentence


def test_a_loss_that_falls_is_good(tmp_path: Path, make_run: Any) -> None:
    losses = {"train/loss": [2.0, 2.1, 1.9] * 5 + [1.0, 1.1, 0.9]}
    assert verdict(read_run(make_run(tmp_path, losses, heldout={}))).tone == "better"


def test_a_run_that_died_is_said_to_have_died(tmp_path: Path, make_run: Any) -> None:
    found = verdict(read_run(make_run(tmp_path, {"reward/total/mean": [0.1, 0.2]})))
    assert found.sentence.startswith("The run did not finish: 2 of 5 steps are done.")
    assert found.tone == "unclear" and found.low is None
