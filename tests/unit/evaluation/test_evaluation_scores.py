import math
from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import ndcg_score
from sklearn.metrics.pairwise import cosine_similarity

from grace_exp.evaluation.heldout_sets import HeldoutSet
from grace_exp.evaluation.scores import ItemScores, Score, item_scores, rise, score


def vectors(items: int, seed: int, hidden: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(items, hidden)).astype(np.float32)


def sts(items: int, seed: int = 0) -> HeldoutSet:
    human = np.random.default_rng(seed).integers(0, 11, size=items) / 2.0
    return HeldoutSet(["a"] * items, ["b"] * items, human)


def retrieval(items: int) -> HeldoutSet:
    return HeldoutSet(["a"] * items, ["b"] * items, None)


def test_sts_figure_is_spearman_of_the_cosines() -> None:
    first, second, heldout = vectors(50, 1), vectors(50, 2), sts(50)
    items = item_scores(first, second, heldout)
    cosines = cosine_similarity(first, second).diagonal()
    np.testing.assert_allclose(items.values, cosines, atol=1e-6)
    assert items.figure() == pytest.approx(100 * spearmanr(cosines, heldout.scores).statistic, abs=1e-9)


def test_a_perfect_order_scores_100_and_a_reversed_one_minus_100() -> None:
    human = np.arange(10.0)
    assert ItemScores(human**3, human).figure() == pytest.approx(100)
    assert ItemScores(-human, human).figure() == pytest.approx(-100)


def test_pairs_that_match_or_not_are_scored_by_average_precision() -> None:
    match = np.array([True, False, True, False])
    assert ItemScores(np.array([0.9, 0.8, 0.7, 0.1]), match).figure() == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert ItemScores(np.array([0.9, 0.1, 0.8, 0.2]), match).figure() == pytest.approx(100)
    assert score(ItemScores(np.array([0.9, 0.1, 0.8, 0.2]), match), resamples=50).high == pytest.approx(100)


@pytest.mark.parametrize("items", [5, 12, 60])
def test_retrieval_figure_is_the_ndcg_at_10_of_sklearn(items: int) -> None:
    first = vectors(items, 3)
    second = first + 2 * vectors(items, 4)  # related, so that ranks are spread
    found = item_scores(first, second, retrieval(items))
    expected = ndcg_score(np.eye(items), cosine_similarity(first, second), k=10)
    assert found.figure() == pytest.approx(100 * expected, abs=1e-6)
    assert 0 < expected < 1


def test_ndcg_of_one_right_document_is_the_discount_of_its_rank() -> None:
    # Query 0 finds its document at rank 1, query 1 at rank 2, query 2 at rank 3.
    first = np.array([[1, 0, 0], [1, 0.9, 0], [1, 0.8, 0.7]], dtype=np.float32)
    second = np.eye(3, dtype=np.float32)
    np.testing.assert_allclose(item_scores(first, second, retrieval(3)).values, [1, 1 / math.log2(3), 1 / math.log2(4)])


def test_a_document_beyond_rank_10_counts_nothing() -> None:
    first = np.ones((11, 11), dtype=np.float32)
    first[0, 0] = 0.5
    assert item_scores(first, np.eye(11, dtype=np.float32), retrieval(11)).values[0] == 0


@pytest.mark.parametrize("items", [11, 12, 13, 37, 64, 203])
@pytest.mark.parametrize("hidden", [3, 64, 577])
def test_collapsed_embeddings_score_worst(items: int, hidden: int) -> None:
    same = np.tile(vectors(1, 5, hidden), (items, 1))
    assert item_scores(same, same, retrieval(items)).figure() == 0.0


def test_the_length_of_an_embedding_counts_nothing() -> None:
    first, second, heldout = vectors(20, 1), vectors(20, 2), sts(20)
    stretched = first * np.linspace(0.01, 100, 20, dtype=np.float32)[:, None]
    for one in (heldout, retrieval(20)):
        np.testing.assert_allclose(
            item_scores(stretched, second, one).values, item_scores(first, second, one).values, atol=1e-6
        )


def noisy(items: int, seed: int = 0) -> ItemScores:
    draw = np.random.default_rng(seed)
    human = draw.normal(size=items)
    return ItemScores(human + draw.normal(size=items), human)


def test_the_interval_contains_the_figure_and_shrinks_with_more_items() -> None:
    widths = []
    for items in (30, 100, 330):
        found = score(noisy(items), resamples=300)
        assert found.low is not None
        assert found.high is not None
        assert found.low < found.value < found.high
        widths.append(found.high - found.low)
    assert all(wide > 1.2 * narrow for wide, narrow in pairwise(widths))


def test_the_interval_of_a_mean_is_that_of_its_standard_error() -> None:
    values = np.random.default_rng(0).uniform(size=400)
    found = score(ItemScores(values, None), resamples=4000)
    half = 1.96 * 100 * values.std() / math.sqrt(400)
    assert found.low == pytest.approx(found.value - half, abs=0.1 * half)
    assert found.high == pytest.approx(found.value + half, abs=0.1 * half)


def test_the_same_items_give_the_same_interval() -> None:
    assert score(noisy(40), 100) == score(noisy(40), 100)


def test_no_resamples_mean_no_interval() -> None:
    found = score(noisy(40), 0)
    assert (found.low, found.high) == (None, None)
    assert found.as_dict() == {"value": found.value, "low": None, "high": None}


def test_a_score_prints_as_figure_and_interval() -> None:
    assert str(Score(57.06, 45.0, 66.94)) == "57.1 [45.0, 66.9]"
    assert str(Score(57.06, None, None)) == "57.1"


def test_a_rise_over_itself_is_exactly_nothing() -> None:
    for items in (noisy(40), ItemScores(noisy(40).values, None)):
        assert rise(items, items, 200) == Score(0.0, 0.0, 0.0)


def test_a_rise_is_resampled_in_pairs() -> None:
    before = ItemScores(np.random.default_rng(0).uniform(size=200), None)
    after = ItemScores(before.values + 0.1, None)
    found = rise(before, after, 300)
    # Every item rises by ten points, so every resample does: the spread between items does not widen the interval.
    for value in (found.value, found.low, found.high):
        assert value == pytest.approx(10)
    alone = score(after, 300)
    assert alone.high is not None
    assert alone.low is not None
    assert alone.high - alone.low > 5


def test_a_rise_is_the_difference_of_the_figures() -> None:
    human = noisy(60).human
    before, after = ItemScores(noisy(60, 1).values, human), noisy(60)
    found = rise(before, after, 200)
    assert found.value == pytest.approx(after.figure() - before.figure())
    assert found.low is not None
    assert found.low < found.value
