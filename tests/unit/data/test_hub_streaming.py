import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from grace_exp.data import hub
from grace_exp.data.sources import LoadedSource
from grace_exp.errors import ConfigError, DataError

Load = Callable[..., LoadedSource]


def write(file: Path, rows: int, first: int = 0) -> None:
    lines = [{"query": f"q{n}", "positive": f"p{n}", "negative": f"n{n}"} for n in range(first, first + rows)]
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the hub's layout, of two files."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    folder = tmp_path / "owner" / "set"
    folder.mkdir(parents=True)
    write(folder / "train-0.jsonl", 3)
    write(folder / "train-1.jsonl.gz", 2, first=3)
    return folder


def test_streamed_rows_are_those_that_are_loaded(load: Load, repository: Path) -> None:
    streamed, loaded = load(repository, format="hub", streaming=True), load(repository, format="hub")
    assert streamed.digest == loaded.digest
    assert streamed.rows[4] == {"query": "q4", "positive": "p4", "negatives": ["n4"]}


def test_with_a_limit_what_lies_behind_it_is_not_read(load: Load, repository: Path) -> None:
    (repository / "train-1.jsonl.gz").write_bytes(b"no gzip")
    assert len(load(repository, format="hub", streaming=True, limit=3).rows) == 3
    with pytest.raises(DataError, match=r"s: the hub data set .*, after row 3: (?s:.*)s\.streaming=false"):
        load(repository, format="hub", streaming=True)


def test_files_that_have_changed_are_read_again(load: Load, repository: Path) -> None:
    before = load(repository, format="hub", streaming=True)
    assert load(repository, format="hub", streaming=True).digest == before.digest
    write(repository / "train-0.jsonl", 4)
    assert len(load(repository, format="hub", streaming=True).rows) == len(before.rows) + 1


def test_bad_rows_splits_and_columns_are_named(load: Load, repository: Path) -> None:
    with pytest.raises(DataError, match="has no column 'anchor'; it has 'query', 'positive', 'negative'"):
        load(repository, format="hub", streaming=True, query="anchor")
    with pytest.raises(DataError, match=r"split 'validation'\) could not be streamed"):
        load(repository, format="hub", streaming=True, split="validation")
    (repository / "train-1.jsonl.gz").unlink()
    with (repository / "train-0.jsonl").open("a") as file:
        file.write('{"query": " ", "positive": "p", "negative": "n"}\n')
    with pytest.raises(DataError, match=r"owner/set  train, row 4: field 'query' is only white space"):
        load(repository, format="hub", streaming=True)


def test_what_is_no_hub_data_set_is_not_streamed(load: Load, repository: Path) -> None:
    with pytest.raises(ConfigError, match=r"streaming=true is for data sets of the hub(?s:.*)s\.format=hub"):
        load(repository / "train-0.jsonl", streaming=True)


@pytest.mark.parametrize("offline", [True, False])
def test_without_the_hub_it_says_how_to_go_on(load: Load, monkeypatch: pytest.MonkeyPatch, offline: bool) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(hub, "_hub_answers", lambda path: False)
    why = "HF_HUB_OFFLINE forbids asking the hub" if offline else "the hub does not answer"
    with pytest.raises(DataError, match=rf"'owner/none' .* cannot be streamed: {why}(?s:.*)s\.streaming=false"):
        load("owner/none", streaming=True)
