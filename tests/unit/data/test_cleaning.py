"""Filters of instances: which instances they remove, the reasons, and that the others do not change."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from grace_exp.config.data import DataConfig, SourceConfig
from grace_exp.config.filters import FiltersConfig, TokenLimits
from grace_exp.config.prompt import PromptConfig
from grace_exp.data.batch import Role
from grace_exp.data.cleaning import CleanedSource, clean
from grace_exp.data.leaks import HeldoutTexts
from grace_exp.data.prompts import PromptBuilder
from grace_exp.data.recipes import load_recipe, load_sources
from grace_exp.data.token_lengths import token_lengths
from grace_exp.errors import DataError

ROWS = [
    ("A cat sleeps.", "The cat is asleep.", "It rains."),
    ("a  CAT sleeps", "the cat is asleep", "It rains!"),  # a duplicate, normalised
    ("Same text", "same text!", "Other"),
    ("Query", "Positive", "query"),
    ("Another query", "Negative", "negative."),
    ("A cat sleeps.", "Something new", "It rains."),  # repeats the first query
    ("A cat sleeps.", "The cat is asleep.", "It rains."),  # a duplicate, exact
]


def sources(tmp_path: Path, rows: list[tuple[str, str, str]] = ROWS, name: str = "s") -> dict[str, Any]:
    path = tmp_path / f"{name}.jsonl"
    path.write_text(
        "".join(json.dumps({"query": q, "positive": p, "negative": n}) + "\n" for q, p, n in rows), encoding="utf-8"
    )
    data = DataConfig(name="d", mode="supervised", sources={name: SourceConfig(path=str(path))})
    return load_sources(data, cache_dir=tmp_path / "cache", rejects_path=None)


def cleaned(tmp_path: Path, rows: list[tuple[str, str, str]] = ROWS, **filters: Any) -> CleanedSource:
    settings = FiltersConfig(**{"same_texts": False, "duplicates": "keep", "repeated_texts": "keep", **filters})
    return clean(sources(tmp_path, rows), settings)["s"]


def queries(found: CleanedSource) -> list[str]:
    return list(found.source.rows["query"])


def test_without_filters_a_source_stays_the_same(tmp_path: Path) -> None:
    found = cleaned(tmp_path)
    assert found.source.digest == sources(tmp_path)["s"].digest and found.source.dropped == {}


@pytest.mark.parametrize(
    ("filters", "dropped"),
    [
        ({"same_texts": True}, {"query_is_positive": 1, "query_is_negative": 1, "positive_is_negative": 1}),
        ({"duplicates": "exact"}, {"duplicate": 1}),
        ({"duplicates": "normalized"}, {"duplicate": 2}),
        ({"repeated_texts": "exact"}, {"repeated_text": 2}),
        ({"duplicates": "exact", "repeated_texts": "exact"}, {"duplicate": 1, "repeated_text": 1}),
        ({"keep_pattern": "[.!]"}, {"pattern": 5}),
        ({"drop_pattern": "(?i)query"}, {"pattern": 2}),
    ],
)
def test_every_filter_counts_what_it_leaves_out(
    tmp_path: Path, filters: dict[str, Any], dropped: dict[str, int]
) -> None:
    found = cleaned(tmp_path, **filters)
    assert found.source.dropped == dropped
    assert len(found.source.rows) == len(ROWS) - sum(dropped.values())
    assert {reason: len(examples) for reason, examples in found.examples.items()} == dropped


def test_the_first_of_equal_instances_stays_and_examples_name_the_row(tmp_path: Path) -> None:
    found = cleaned(tmp_path, duplicates="normalized")
    assert queries(found)[0] == "A cat sleeps." and found.source.kept is not None
    assert found.source.kept.tolist() == [0, 2, 3, 4, 5]
    assert [(example.row, example.texts[0]) for example in found.examples["duplicate"]] == [
        (2, "a  CAT sleeps"),
        (7, "A cat sleeps."),
    ]


def test_duplicates_are_found_across_sources(tmp_path: Path) -> None:
    both = sources(tmp_path) | sources(tmp_path, [("New", "Text", "It"), ROWS[0]], name="t")
    settings = FiltersConfig(duplicates="exact", same_texts=False, repeated_texts="keep")
    found = clean(both, settings)
    assert found["s"].source.dropped == {"duplicate": 1} == found["t"].source.dropped
    assert queries(found["t"]) == ["New"]


def test_near_duplicates_are_those_that_share_trigrams(tmp_path: Path) -> None:
    long = " ".join(f"word{number}" for number in range(60))
    rows = [(long, "positive", "n"), (long + " more", "positive", "n"), (long[::-1], "positive", "n")]
    found = cleaned(tmp_path, rows, near_duplicates=0.8)
    assert found.source.dropped == {"near_duplicate": 1}
    assert queries(found) == [long, long[::-1]]


def test_languages_other_than_the_chosen_go(tmp_path: Path) -> None:
    english = "This is a sentence about the weather in the north of the country."
    german = "Dies ist ein Satz über das Wetter im Norden des Landes."
    rows = [(english, english, english), (english, german, english)]
    found = cleaned(tmp_path, rows, languages=("en",))
    assert found.source.dropped == {"language": 1}


def test_a_source_without_instances_left_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.clean and data\.filters leave no instance \(7 pattern"):
        cleaned(tmp_path, keep_pattern="xyz")


def test_token_limits_count_with_the_tokenizer_and_the_template(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    long = "A much longer text of many different words that take up a lot of room in every prompt, one by one. " * 3
    rows = [("short", "short", "short"), ("short", long, "short"), (long, "short", "short"), ("short", "x", long)]
    loaded = sources(tmp_path, rows)
    prompts = PromptBuilder(tokenizer, PromptConfig(name="p", system="Read.", max_tokens=64))
    lengths = token_lengths(loaded["s"], prompts, "tiny")
    ids = [len(tokenizer(row[1].strip(), add_special_tokens=False)["input_ids"]) for row in rows]
    assert lengths.positive.tolist() == ids

    def dropped(**filters: Any) -> dict[str, int]:
        settings = FiltersConfig(same_texts=False, duplicates="keep", repeated_texts="keep", **filters)
        return dict(clean(loaded, settings, lengths=lambda _: lengths)["s"].source.dropped)

    assert dropped(uncut=("positive",)) == {"cut": 1}
    assert dropped(uncut=("query", "positive", "negative")) == {"cut": 3}
    assert dropped(max_tokens=TokenLimits(negative=10)) == {"too_long": 1}
    assert dropped(min_tokens=TokenLimits(positive=2)) == {"too_short": sum(count < 2 for count in ids)}
    cut = [prompts(Role.POSITIVE, row[1]).text_tokens_cut > 0 for row in rows]
    assert lengths.cut(("positive",)).tolist() == cut


def held_out(*texts: str, length: int = 5) -> HeldoutTexts:
    return HeldoutTexts.of({"set": texts}, length)


def test_leaks_are_exact_normalised_or_share_a_run_of_words(tmp_path: Path) -> None:
    loaded = sources(tmp_path)["s"]
    found = held_out("It rains.", "SAME TEXT").overlap(loaded)
    assert np.flatnonzero(found["exact"]).tolist() == [0, 5, 6]
    assert np.flatnonzero(found["normalized"]).tolist() == [1, 2]
    runs = held_out("They say the cat is asleep today", length=4).overlap(loaded)
    assert np.flatnonzero(runs["ngram"]).tolist() == [0, 1, 6]
    assert not held_out("the cat is awake and asleep", length=4).leaks(loaded).any()


def test_leaks_are_dropped_or_refused_by_setting(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    sources(tmp_path)

    def recipe(leaks: str) -> int:
        data = DataConfig(name="d", mode="supervised", sources={"s": SourceConfig(path=str(path))}, leaks=leaks)  # type: ignore[arg-type]
        arguments: dict[str, Any] = {"seed": 0, "cache_dir": tmp_path / "cache", "rejects_path": None}
        return len(load_recipe(data, **arguments, heldout=held_out("It rains.")))

    assert (recipe("report"), recipe("drop")) == (7, 3)
    with pytest.raises(DataError, match=r"4 of 7 instances hold texts of the evaluation \(set\)\. The first, row 1"):
        recipe("refuse")


def test_more_bad_rows_than_allowed_stop_the_run(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    sources(tmp_path)
    with path.open("a") as file:
        file.write("broken\n" * 3)

    def load(limit: float) -> dict[str, Any]:
        data = DataConfig(
            name="d",
            mode="supervised",
            sources={"s": SourceConfig(path=str(path))},
            on_bad_row="reject",
            max_rejected=limit,
        )
        return load_sources(data, cache_dir=tmp_path / "cache", rejects_path=tmp_path / "rejects.jsonl")

    assert load(0.3)["s"].rejected == 3
    with pytest.raises(DataError, match=r"3 of 10 rows are bad \(30\.0%\), more than data\.max_rejected=0\.2"):
        load(0.2)


def test_the_standard_preset_gives_way_to_single_filters() -> None:
    source = {"s": SourceConfig(path="x.jsonl")}
    standard = DataConfig(name="d", mode="supervised", sources=source, clean="standard").effective_filters
    assert (standard.same_texts, standard.duplicates, standard.uncut) == (True, "normalized", ("positive",))
    own = DataConfig(
        name="d",
        mode="supervised",
        sources=source,
        clean="standard",
        filters=FiltersConfig(duplicates="keep", uncut=()),
    ).effective_filters
    assert (own.same_texts, own.duplicates, own.uncut) == (True, "keep", ())
    assert not DataConfig(name="d", mode="supervised", sources=source).effective_filters.needs_tokens
