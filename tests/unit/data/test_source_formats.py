"""Compressed files, arrays, folders and lists of paths hold the rows that the plain file holds."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from grace_exp.config.data import DataConfig, SourceConfig
from grace_exp.data.file_digests import file_digest
from grace_exp.data.sources import LoadedSource, load_source
from grace_exp.errors import DataError

ROWS = [{"query": f"q{n}", "positive": f"p{n}", "negative": "n"} for n in range(3)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


@pytest.fixture
def plain(tmp_path: Path, load: Callable[..., LoadedSource]) -> LoadedSource:
    (tmp_path / "plain.jsonl").write_bytes(LINES)
    return load(tmp_path / "plain.jsonl")


def test_compressed_files_and_arrays_are_read(
    tmp_path: Path, load: Callable[..., LoadedSource], plain: LoadedSource
) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES))
    (tmp_path / "b.jsonl.zst").write_bytes(pa.compress(LINES, codec="zstd", asbytes=True))
    (tmp_path / "c.json").write_text("\ufeff " + json.dumps(ROWS, indent=1), encoding="utf-8")
    (tmp_path / "d.json").write_bytes(LINES)
    (tmp_path / "e.json.gz").write_bytes(gzip.compress(json.dumps(ROWS).encode()))
    header = b"query,positive,negative\n"
    (tmp_path / "f.csv.gz").write_bytes(gzip.compress(header + b"".join(b"q%d,p%d,n\n" % (n, n) for n in range(3))))
    for name in ("a.jsonl.gz", "b.jsonl.zst", "c.json", "d.json", "e.json.gz", "f.csv.gz"):
        assert load(tmp_path / name).digest == plain.digest, name


def test_a_folder_and_a_list_of_paths_are_all_their_files(tmp_path: Path, load: Callable[..., LoadedSource]) -> None:
    for place, row in enumerate(ROWS):
        folder = tmp_path / "many" / ("deep" if place else ".")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{place}.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "many" / "README.md").write_text("no data")
    queries = load(tmp_path / "many").rows["query"]
    assert sorted(queries) == ["q0", "q1", "q2"]
    listed = SourceConfig(path=(str(tmp_path / "many" / "0.jsonl"), str(tmp_path / "many" / "deep" / "*.jsonl")))
    data = DataConfig(name="d", mode="supervised", sources={"s": listed})
    assert list(load_source("s", listed, data, None, tmp_path / "cache").rows["query"]) == ["q0", "q1", "q2"]


def test_a_folder_without_data_says_what_it_looked_for(tmp_path: Path, load: Callable[..., LoadedSource]) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"the folder holds no file of \.jsonl"):
        load(tmp_path / "empty")


@pytest.mark.parametrize("cut", [10, -4])
def test_a_damaged_compressed_file_is_named(tmp_path: Path, load: Callable[..., LoadedSource], cut: int) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES * 1000)[:cut])
    with pytest.raises(DataError, match=r"a\.jsonl\.gz.*(damaged|JSON)"):
        load(tmp_path / "a.jsonl.gz")


def test_a_broken_array_names_the_last_whole_object(tmp_path: Path, load: Callable[..., LoadedSource]) -> None:
    (tmp_path / "a.json").write_text(json.dumps(ROWS)[:-20])
    with pytest.raises(DataError, match=r"a\.json, after object 2 of the array: broken JSON"):
        load(tmp_path / "a.json")


def test_bad_objects_of_an_array_are_bad_rows(tmp_path: Path, load: Callable[..., LoadedSource]) -> None:
    (tmp_path / "a.json").write_text(json.dumps([*ROWS, 3, {"query": "q"}]))
    assert load(tmp_path / "a.json", on_bad_row="reject").rejected == 2


def test_a_file_is_read_for_its_digest_once_and_again_after_a_change(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(LINES)
    first = file_digest(file, tmp_path / "cache")
    (memory,) = (tmp_path / "cache" / "digests").iterdir()
    memory.write_text("0" * 64)
    assert file_digest(file, tmp_path / "cache") == "0" * 64  # remembered, not read
    file.write_bytes(LINES + b"\n")
    assert file_digest(file, tmp_path / "cache") not in (first, "0" * 64)
