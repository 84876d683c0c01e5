import pytest

from grace_exp.data.wordnet import WordNetRow, load_wordnet, load_wordnet_classes, wordnet_path

SPLITS = ("train", "dev", "test")


@pytest.fixture(scope="module")
def splits() -> dict[str, list[WordNetRow]]:
    return {split: load_wordnet(split) for split in SPLITS}  # type: ignore[arg-type]


def test_sizes(splits: dict[str, list[WordNetRow]]) -> None:
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 3600, "dev": 500, "test": 500}
    assert sum(wordnet_path(split).stat().st_size for split in SPLITS) < 1_500_000  # type: ignore[arg-type]


def test_no_lemma_synset_or_text_occurs_in_two_splits(splits: dict[str, list[WordNetRow]]) -> None:
    for kind in ("lemmas", "synset", "texts"):
        seen = {}
        for split, rows in splits.items():
            seen[split] = {
                "lemmas": {lemma for row in rows for lemma in [*row["lemmas"], *row["negative_lemmas"]]},
                "synset": {row["synset"] for row in rows},
                "texts": {row[field] for row in rows for field in ("query", "positive", "negative")},  # type: ignore[literal-required]
            }[kind]
        assert seen["train"]
        assert seen["train"].isdisjoint(seen["dev"] | seen["test"])
        assert seen["dev"].isdisjoint(seen["test"])


def test_rows_are_clean(splits: dict[str, list[WordNetRow]]) -> None:
    for row in [row for rows in splits.values() for row in rows]:
        assert len(row["query"].split()) >= 4
        assert len(row["positive"].split()) >= 3
        assert len(row["negative"].split()) >= 3
        for text in (row["query"], row["positive"], row["negative"]):
            assert text == text.strip() == text.strip("\"'`")
            assert '"' not in text
        assert row["positive"] != row["negative"]


def test_a_synset_gives_one_row_and_no_query_repeats(splits: dict[str, list[WordNetRow]]) -> None:
    rows = [row for rows in splits.values() for row in rows]
    assert len({row["synset"] for row in rows}) == len({row["query"] for row in rows}) == len(rows)


def test_most_negatives_are_another_sense_of_the_same_word(splits: dict[str, list[WordNetRow]]) -> None:
    rows = splits["train"]
    assert sum(bool(set(row["lemmas"]) & set(row["negative_lemmas"])) for row in rows) > len(rows) / 2


def test_classes_are_equally_many_definitions_that_training_has_not_seen(
    splits: dict[str, list[WordNetRow]],
) -> None:
    rows = load_wordnet_classes()
    labels = [row["label"] for row in rows]
    assert {label: labels.count(label) for label in labels} == dict.fromkeys(set(labels), 60)
    assert len(set(labels)) == 10 and len({row["text"] for row in rows}) == len({row["synset"] for row in rows}) == 600
    trained = {text for row in splits["train"] for text in (row["positive"], row["negative"])}
    assert trained.isdisjoint(row["text"] for row in rows)


def test_the_licence_lies_beside_the_files() -> None:
    licence = wordnet_path("train").with_name("LICENSE").read_text()
    assert "WordNet 3.0 Copyright 2006 by Princeton University.  All rights reserved." in licence
    assert "Permission to use, copy, modify and distribute" in licence
