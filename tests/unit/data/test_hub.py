import json
from collections.abc import Callable
from pathlib import Path

import pytest

from grace_exp.data import hub
from grace_exp.data.sources import LoadedSource
from grace_exp.errors import DataError

Load = Callable[..., LoadedSource]

ROWS = [{"anchor": f"q{n}", "positive": f"p{n}", "negative": f"n{n}"} for n in range(3)]


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the hub's layout, and a private cache for what the library makes of it."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    folder = tmp_path / "owner" / "set"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


def test_rows_of_a_hub_data_set_equal_those_of_its_file(load: Load, repository: Path) -> None:
    from_hub = load(repository, format="hub", query="anchor")
    assert from_hub.rows[2] == {"query": "q2", "positive": "p2", "negatives": ["n2"]}
    assert from_hub.digest == load(repository / "train.jsonl", query="anchor").digest


def test_a_bad_row_of_a_hub_data_set_is_named_by_its_number(load: Load, repository: Path) -> None:
    with (repository / "train.jsonl").open("a") as file:
        file.write(json.dumps({"anchor": " ", "positive": "p", "negative": "n"}) + "\n")
    with pytest.raises(DataError, match=r"owner/set  train, row 4: field 'anchor' is only white space"):
        load(repository, format="hub", query="anchor")


def test_a_missing_column_or_split_is_named(load: Load, repository: Path) -> None:
    with pytest.raises(DataError, match="has no column 'query'; it has 'anchor', 'positive', 'negative'"):
        load(repository, format="hub")
    with pytest.raises(DataError, match=r"split 'validation'\) could not be loaded"):
        load(repository, format="hub", split="validation")


def test_an_unreachable_hub_is_an_error_that_names_the_way_out(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_hub_answers", lambda path: False)
    with pytest.raises(
        DataError, match=r"hub data set 'owner/no-such-set' .* could not be loaded: ConnectionError"
    ) as error:
        load("owner/no-such-set")
    assert "data.sources.s.path=FILE (.jsonl" in str(error.value)
