import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from grace_exp.config.data import DataConfig, SourceConfig
from grace_exp.data.batch import Instance
from grace_exp.data.recipes import Recipe, load_recipe


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def triplets(name: str, count: int) -> list[dict[str, Any]]:
    return [{"query": f"{name} q{n}", "positive": f"{name} p{n}", "negative": f"{name} n{n}"} for n in range(count)]


def recipe(
    tmp_path: Path, sources: dict[str, SourceConfig], *, seed: int = 0, rejects: Path | None = None, **data: Any
) -> Recipe:
    config = DataConfig(**{"name": "d", "mode": "supervised", **data}, sources=sources)
    return load_recipe(config, seed=seed, cache_dir=tmp_path / "cache", rejects_path=rejects)


@pytest.fixture
def two(tmp_path: Path) -> dict[str, SourceConfig]:
    return {
        "a": SourceConfig(path=str(write(tmp_path / "a.jsonl", triplets("a", 3)))),
        "b": SourceConfig(path=str(write(tmp_path / "b.jsonl", triplets("b", 2))), weight=2.0),
    }


def test_instances_are_numbered_through_the_sources(tmp_path: Path, two: dict[str, SourceConfig]) -> None:
    whole = recipe(tmp_path, two)
    assert len(whole) == 5
    assert whole[2] == Instance(index=2, query="a q2", positive="a p2", negatives=("a n2",), source="a")
    assert whole[3] == Instance(index=3, query="b q0", positive="b p0", negatives=("b n0",), source="b")
    assert [instance.index for instance in whole] == [0, 1, 2, 3, 4]
    for index in (5, -1):
        with pytest.raises(IndexError):
            whole[index]


def test_an_unsupervised_text_is_its_own_positive(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("one\ntwo\n")
    texts = recipe(tmp_path, {"t": SourceConfig(path=str(tmp_path / "t.txt"))}, mode="unsupervised")
    assert texts[1] == Instance(index=1, query="two", positive="two", negatives=(), source="t")


def test_describe_counts_rows_and_rejected_rows_of_every_source(tmp_path: Path, two: dict[str, SourceConfig]) -> None:
    for name, bad in (("a", 1), ("b", 2)):
        with Path(two[name].path).open("a") as file:
            file.write("not json\n" * bad)
    rejects = tmp_path / "run" / "rejects.jsonl"
    for _ in range(2):  # a resumed run lists them once as well
        whole = recipe(tmp_path, two, on_bad_row="reject", rejects=rejects)
        assert whole.describe() == {
            "rows": {"a": 3, "b": 2},
            "rejected": {"a": 1, "b": 2},
            "fingerprint": whole.fingerprint,
        }
        assert [Path(json.loads(line)["file"]).name for line in rejects.read_text().splitlines()] == [
            "a.jsonl",
            "b.jsonl",
            "b.jsonl",
        ]


def test_the_fingerprint_ignores_place_time_format_and_cache(tmp_path: Path, two: dict[str, SourceConfig]) -> None:
    before = recipe(tmp_path, two).fingerprint
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved = {}
    for name, source in two.items():
        target = Path(shutil.copy(source.path, elsewhere / f"other_{name}.json"))
        os.utime(target, (1, 1))
        moved[name] = SourceConfig(path=str(target), weight=source.weight)
    assert recipe(tmp_path / "other_cache", moved).fingerprint == before


def test_the_fingerprint_changes_with_contents_and_settings(tmp_path: Path, two: dict[str, SourceConfig]) -> None:
    def changed(name: str, **settings: Any) -> dict[str, SourceConfig]:
        return {**two, name: SourceConfig(**{"path": two[name].path, "weight": two[name].weight, **settings})}

    texts = {name: SourceConfig(path=source.path, text="query") for name, source in two.items()}
    swapped = write(tmp_path / "swapped.jsonl", triplets("a", 3)[::-1])
    prints = [
        recipe(tmp_path, two).fingerprint,
        recipe(tmp_path, two, negatives=0).fingerprint,
        recipe(tmp_path, changed("a", weight=3.0)).fingerprint,
        recipe(tmp_path, changed("a", limit=2)).fingerprint,
        recipe(tmp_path, changed("a", path=str(swapped))).fingerprint,
        recipe(tmp_path, changed("a", positive="negative")).fingerprint,
        recipe(tmp_path, {"b": two["b"], "a": two["a"]}).fingerprint,
        recipe(tmp_path, texts, mode="unsupervised").fingerprint,
    ]
    assert len(set(prints)) == len(prints)
    assert recipe(tmp_path, two, seed=9).fingerprint == prints[0]


def test_fingerprint_and_schedule_of_the_vendored_sample_are_the_same_on_every_machine(tmp_path: Path) -> None:
    # No outside source: these pin what this version gives. If they must change, raise VERSION in recipes.py.
    sample = recipe(tmp_path, {"wordnet": SourceConfig(path="builtin:wordnet", split="dev")}, seed=7)
    assert sample.fingerprint == "11a9827266c73f04d3bfaba2b2cccdf34f3478a2d42637a51b61a6637de8c8a3"
    assert sample.schedule(4, 200)[150] == [35, 184, 273, 50]


def test_the_schedule_mixes_by_weight_and_depends_on_the_seed(tmp_path: Path, two: dict[str, SourceConfig]) -> None:
    schedule = recipe(tmp_path, two, seed=1).schedule(3, 10)
    assert all(sum(index >= 3 for index in schedule[step]) == 2 for step in range(10))
    again = recipe(tmp_path, two, seed=1).schedule(3, 10)
    other = recipe(tmp_path, two, seed=2).schedule(3, 10)
    assert [schedule[s] for s in range(10)] == [again[s] for s in range(10)] != [other[s] for s in range(10)]


@pytest.fixture
def mixed(tmp_path: Path) -> dict[str, SourceConfig]:
    """Triplets with two negatives, pairs, and single texts."""
    rows = [{**row, "negative": [row["negative"], "more"]} for row in triplets("a", 3)]
    (tmp_path / "t.txt").write_text("one\ntwo\n")
    return {
        "a": SourceConfig(path=str(write(tmp_path / "a.jsonl", rows)), mode="supervised", negatives=2),
        "b": SourceConfig(path=str(write(tmp_path / "b.jsonl", triplets("b", 2))), mode="supervised", negatives=0),
        "t": SourceConfig(path=str(tmp_path / "t.txt"), mode="unsupervised", weight=2.0),
    }


def test_a_mixed_recipe_has_instances_of_every_kind(tmp_path: Path, mixed: dict[str, SourceConfig]) -> None:
    whole = recipe(tmp_path, mixed, mode="mixed")
    assert whole[1] == Instance(index=1, query="a q1", positive="a p1", negatives=("a n1", "more"), source="a")
    assert whole[4] == Instance(index=4, query="b q1", positive="b p1", negatives=(), source="b")
    assert whole[5] == Instance(index=5, query="one", positive="one", negatives=(), source="t")
    schedule = whole.schedule(4, 5)
    assert all(sorted(whole[i].source for i in schedule[step]) == ["a", "b", "t", "t"] for step in range(5))


def test_the_kinds_of_a_recipe_are_said_once_and_agree(tmp_path: Path, mixed: dict[str, SourceConfig]) -> None:
    def problem(mode: str, sources: dict[str, SourceConfig]) -> str:
        with pytest.raises(ValidationError) as raised:
            DataConfig(name="d", mode=mode, sources=sources)
        return raised.value.errors()[0]["msg"]

    silent = SourceConfig(path="x.jsonl")
    assert "sources.s.mode=null: say supervised or unsupervised" in problem("mixed", {**mixed, "s": silent})
    assert "every source is supervised: set data.mode=supervised" in problem("mixed", {"a": mixed["a"]})
    assert "sources.t.mode='unsupervised' in a recipe of mode='supervised'" in problem("supervised", mixed)
    assert DataConfig(name="d", mode="supervised", sources={"a": mixed["a"], "s": silent}).negative_counts() == {1, 2}
    assert DataConfig(name="d", mode="mixed", sources=mixed).negative_counts() == {0, 2}


def test_another_instance_is_of_the_same_source_and_not_taken(tmp_path: Path, two: dict[str, SourceConfig]) -> None:
    whole = recipe(tmp_path, two)
    drawn = {whole.another(1, seed, {1}) for seed in range(30)}
    assert drawn == {whole[0], whole[2]}
    assert whole.another(1, 5, {1}) == whole.another(1, 5, {1})
    assert whole.another(3, 0, {3, 0, 1}) == whole[4]
    assert whole.another(3, 0, {3, 4}) is None
