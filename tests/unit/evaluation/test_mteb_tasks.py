"""The tasks of the offline suites."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from grace_exp.data.stsb import StsPairs
from grace_exp.data.wordnet import load_wordnet
from grace_exp.evaluation.mteb.packaged import PackagedFiles
from grace_exp.evaluation.mteb.tasks.common import draw, short
from grace_exp.evaluation.mteb.tasks.lee import LeePairs
from grace_exp.evaluation.mteb.tasks.sts_benchmark import StsbDev, StsbTestSmall
from grace_exp.evaluation.mteb.tasks.vader import VaderMovies, VaderMoviesSmall
from grace_exp.evaluation.mteb.tasks.wordnet_classes import WordNetClasses, WordNetClassesSmall
from grace_exp.evaluation.mteb.tasks.wordnet_glosses import WordNetGlosses, WordNetGlossesSmall
from grace_exp.evaluation.mteb.tasks.wordnet_senses import WordNetSenses, WordNetSensesSmall


def columns(task, split: str = "test") -> dict[str, list]:
    task.load_data()
    return {name: list(task.dataset[split][name]) for name in task.dataset[split].column_names}


def test_every_example_has_one_gloss_among_those_of_the_held_out_rows() -> None:
    task = WordNetGlosses()
    task.load_data()
    data = task.dataset["default"]["test"]
    glosses = dict(zip(data["corpus"]["id"], data["corpus"]["text"], strict=True))
    found = {
        text: [glosses[document] for document in data["relevant_docs"][name]]
        for name, text in zip(data["queries"]["id"], data["queries"]["text"], strict=True)
    }
    rows = load_wordnet("test")
    assert found == {row["query"]: [row["positive"]] for row in rows}
    assert set(glosses.values()) == {row[side] for row in rows for side in ("positive", "negative")}
    assert len(set(glosses.values())) == len(glosses)


def test_senses_pair_an_example_with_its_gloss_and_another_senses() -> None:
    data = columns(WordNetSenses())
    rows = load_wordnet("test")
    pairs = list(zip(data["sentence1"], data["sentence2"], data["labels"], strict=True))
    assert pairs[:2] == [(rows[0]["query"], rows[0]["positive"], 1), (rows[0]["query"], rows[0]["negative"], 0)]
    assert len(pairs) == 1000 and sum(data["labels"]) == 500


def test_all_definitions_are_clustered() -> None:
    data = columns(WordNetClasses())
    assert len(data["sentences"]) == 600 and len(set(data["labels"])) == 10
    assert WordNetClasses.max_fraction_of_documents_to_embed is WordNetClasses.max_document_to_embed is None


@pytest.mark.parametrize(
    ("small", "count"), [(WordNetSensesSmall, 72), (WordNetClassesSmall, 80)], ids=["senses", "classes"]
)
def test_small_tasks_hold_short_texts(small, count: int) -> None:
    data = columns(small())
    assert {len(column) for column in data.values()} == {count}
    assert all(short(text) for name, column in data.items() if name.startswith("sentence") for text in column)


def test_small_retrieval_and_pairs_share_their_texts_which_are_written_to_once() -> None:
    retrieval, pairs = WordNetGlossesSmall(), columns(WordNetSensesSmall())
    retrieval.load_data()
    data = retrieval.dataset["default"]["test"]
    assert {*data["queries"]["text"], *data["corpus"]["text"]} == {*pairs["sentence1"], *pairs["sentence2"]}


def test_the_data_decides_the_revision() -> None:
    assert WordNetGlosses().metadata.revision == WordNetSenses().metadata.revision  # of one file
    assert WordNetGlosses().metadata.revision != WordNetClasses().metadata.revision
    assert WordNetGlosses().metadata.revision != WordNetGlossesSmall().metadata.revision


@pytest.fixture
def stsb(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = ["", " word" * 30]
    pairs = StsPairs(
        [f"one {i}{ends[i % 2]}" for i in range(300)], [f"two {i}" for i in range(300)], np.arange(300) / 60
    )
    monkeypatch.setattr("grace_exp.evaluation.mteb.tasks.sts_benchmark.load_stsb", lambda split: pairs)


def test_pairs_of_sentences_keep_their_scores(stsb: None) -> None:
    whole = columns(StsbDev())
    assert whole["sentence1"][:1] == ["one 0"] and whole["score"] == pytest.approx(np.arange(300) / 60)
    small = columns(StsbTestSmall())
    numbers = [int(text.split()[1]) for text in small["sentence1"]]
    assert len(set(numbers)) == 50 and all(number % 2 == 0 for number in numbers)  # the others are too long
    assert small["sentence2"] == [f"two {number}" for number in numbers]
    assert small["score"] == pytest.approx([number / 60 for number in numbers])


def test_what_is_drawn_depends_on_the_keys_alone() -> None:
    items = [f"item {i}" for i in range(50)]
    drawn = draw(items, 10, key=str)
    assert drawn == draw(reversed(items), 10, key=str) and len(set(drawn)) == 10
    assert drawn[:5] == draw(items, 5, key=str)
    assert drawn != items[:10]


def test_lee_compares_every_two_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "texts").write_bytes("first\nse\xf1or\nthird".encode("latin-1"))
    (tmp_path / "numbers").write_text("1\t0.2\t0.3\n0\t1\t0.4\n0\t0\t1\n")
    monkeypatch.setattr(
        PackagedFiles,
        "fetch",
        lambda self, cache_dir: dict(zip(self.sums, (tmp_path / "texts", tmp_path / "numbers"), strict=True)),
    )
    data = columns(LeePairs(tmp_path))
    assert list(zip(data["sentence1"], data["sentence2"], data["score"], strict=True)) == [
        ("first", "señor", 0.2),
        ("first", "third", 0.3),
        ("señor", "third", 0.4),
    ]


@pytest.fixture
def reviews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a cache folder. 700 rated lines are clearly positive, 700 clearly negative, half of each long."""
    lines = [
        f"{i}\t{rating}\t{name} {i}{' word' * 30 if i % 2 else ''}"
        for name, rating in (("good", 1.0), ("bad", -1.0), ("so-so", 0.99), ("meh", -0.9))
        for i in range(700)
    ]
    content = "\r\n".join(lines).encode()
    archive = tmp_path / "reviews.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        member = tarfile.TarInfo("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    monkeypatch.setattr(PackagedFiles, "fetch", lambda self, cache_dir: dict.fromkeys(self.sums, archive))
    return tmp_path


@pytest.mark.parametrize(("kind", "sizes"), [(VaderMovies, (160, 1000)), (VaderMoviesSmall, (24, 56))])
def test_sentiment_is_of_clear_cases_half_and_half(kind, sizes: tuple[int, int], reviews: Path) -> None:
    train, test = (columns(kind(reviews), split) for split in ("train", "test"))
    assert (len(train["text"]), len(test["text"])) == sizes
    assert set(train["text"]).isdisjoint(test["text"])
    for part in (train, test):
        assert sum(part["label"]) * 2 == len(part["label"])
        assert all(text.startswith(("bad ", "good ")[label]) for text, label in zip(*part.values(), strict=True))
    if kind.only_short:
        assert all(short(text) for text in train["text"] + test["text"])
