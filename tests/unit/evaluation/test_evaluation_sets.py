import numpy as np
import pytest

from grace_exp.config.evaluation import EvaluationSetConfig
from grace_exp.data.stsb import StsPairs
from grace_exp.errors import ConfigError
from grace_exp.evaluation.heldout_sets import HeldoutSet, load_set

WORDNET = EvaluationSetConfig(kind="retrieval", source="wordnet", size=50)


@pytest.fixture
def stsb(monkeypatch: pytest.MonkeyPatch) -> StsPairs:
    pairs = StsPairs([f"a{i}" for i in range(100)], [f"b{i}" for i in range(100)], np.arange(100) / 20)
    monkeypatch.setattr("grace_exp.data.stsb.load_stsb", lambda split: pairs if split == "dev" else None)
    return pairs


def lines(heldout: HeldoutSet) -> list[tuple[str, str]]:
    return list(zip(heldout.first, heldout.second, strict=True))


def test_pairs_keep_their_scores_when_some_are_drawn(stsb: StsPairs) -> None:
    heldout = load_set("s", EvaluationSetConfig(kind="sts", source="stsb", size=30))
    assert heldout.scores is not None
    assert len(heldout.first) == len(set(heldout.first)) == 30
    for one, two, score in zip(heldout.first, heldout.second, heldout.scores, strict=True):
        place = stsb.sentence1.index(one)
        assert (two, score) == (stsb.sentence2[place], stsb.scores[place])


def test_without_a_size_the_whole_set_is_taken(stsb: StsPairs) -> None:
    heldout = load_set("s", EvaluationSetConfig(kind="sts", source="stsb"))
    assert (heldout.first, heldout.second) == (stsb.sentence1, stsb.sentence2)
    np.testing.assert_array_equal(heldout.scores, stsb.scores)


def test_the_same_items_are_drawn_every_time_whatever_the_random_state() -> None:
    np.random.seed(1)
    first = load_set("s", WORDNET)
    np.random.seed(2)
    assert lines(load_set("s", WORDNET)) == lines(first)


def test_retrieval_documents_are_distinct_and_answer_their_query() -> None:
    heldout = load_set("s", WORDNET)
    assert heldout.scores is None
    assert len(set(heldout.second)) == len(heldout.second) == 50
    whole = load_set("s", EvaluationSetConfig(kind="retrieval", source="wordnet"))
    assert len(set(whole.second)) == len(whole.second) > 50
    assert set(lines(heldout)) < set(lines(whole))


def test_splits_share_no_document() -> None:
    dev, test = (
        load_set("s", EvaluationSetConfig(kind="retrieval", source="wordnet", split=split)) for split in ("dev", "test")
    )
    assert not set(dev.second) & set(test.second)


def test_a_size_beyond_the_set_is_an_error_that_names_the_setting(stsb: StsPairs) -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.sets\.mine\.size = 101: the set has 100"):
        load_set("mine", EvaluationSetConfig(kind="sts", source="stsb", size=101))


@pytest.mark.parametrize(("kind", "source"), [("sts", "wordnet"), ("retrieval", "stsb")])
def test_a_kind_that_does_not_fit_its_source_is_an_error_that_names_what_does(kind: str, source: str) -> None:
    config = EvaluationSetConfig(kind=kind, source=source)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"evaluation\.sets\.mine: .*sts with stsb, and retrieval with wordnet"):
        load_set("mine", config)
