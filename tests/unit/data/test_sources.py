import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from grace_exp.data.sources import LoadedSource
from grace_exp.data.stsb import stsb_triplets
from grace_exp.data.wordnet import load_wordnet

Load = Callable[..., LoadedSource]

ROWS = [
    {"query": "a, with comma", "positive": 'says "yes"', "negative": "nothing"},
    {"query": "Überraschung ☃ 😀", "positive": "two\nlines", "negative": "tab\there"},
    {"query": " kept as it is ", "positive": "'", "negative": "line separator\u2028inside"},
]


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_csv(path: Path, rows: list[dict[str, str]], delimiter: str = ",") -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path: Path, rows: list[Any]) -> Path:
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_every_format_gives_the_same_rows_and_digest(load: Load, tmp_path: Path) -> None:
    loaded = [
        load(write_jsonl(tmp_path / "a.jsonl", ROWS)),
        load(write_jsonl(tmp_path / "a.json", ROWS)),
        load(write_csv(tmp_path / "a.csv", ROWS)),
        load(write_csv(tmp_path / "a.tsv", ROWS, "\t"), quoting="quoted"),
        load(write_parquet(tmp_path / "a.parquet", ROWS)),
        load(write_jsonl(tmp_path / "a.data", ROWS), format="jsonl"),
    ]
    expected = [{**row, "negatives": [row["negative"]]} for row in ROWS]
    for row in expected:
        del row["negative"]
    for source in loaded:
        assert source.rows.to_list() == expected
        assert source.rejected == 0
    assert len({source.digest for source in loaded}) == 1


def test_text_lines_equal_a_text_column(load: Load, tmp_path: Path) -> None:
    texts = ["first", "zweite Zeile: ä", "third, with comma"]
    (tmp_path / "t.txt").write_text("\n".join(texts), encoding="utf-8")
    lines = load(tmp_path / "t.txt", mode="unsupervised")
    column = load(write_jsonl(tmp_path / "t.jsonl", [{"text": t, "more": 1} for t in texts]), mode="unsupervised")
    assert lines.rows["text"][:] == texts == column.rows["text"][:]
    assert lines.digest == column.digest


def test_windows_line_ends_a_byte_order_mark_and_blank_lines_at_the_end_do_not_matter(
    load: Load, tmp_path: Path
) -> None:
    (tmp_path / "plain.csv").write_bytes(b"query,positive,negative\na,b,c\n")
    (tmp_path / "windows.csv").write_bytes(b"\xef\xbb\xbfquery,positive,negative\r\na,b,c\r\n\r\n   \r\n")
    (tmp_path / "t.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n\r\n\n")
    assert load(tmp_path / "windows.csv").digest == load(tmp_path / "plain.csv").digest
    assert load(tmp_path / "t.txt", mode="unsupervised").rows["text"][:] == ["one", "two"]


def test_a_glob_reads_its_files_in_the_order_of_their_names(load: Load, tmp_path: Path) -> None:
    write_csv(tmp_path / "part-2.csv", ROWS[1:])
    write_jsonl(tmp_path / "part-1.jsonl", ROWS[:1])
    whole = load(write_jsonl(tmp_path / "whole.jsonl", ROWS))
    assert load(tmp_path / "part-*").digest == whole.digest


def test_a_relative_path_starts_at_the_working_directory(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    monkeypatch.chdir(tmp_path)
    assert len(load("a.jsonl").rows) == len(load("./*.jsonl").rows) == 3


def test_columns_can_have_other_names(load: Load, tmp_path: Path) -> None:
    renamed = [{"q": r["query"], "pos": r["positive"], "neg": r["negative"]} for r in ROWS]
    source = load(write_csv(tmp_path / "a.csv", renamed), query="q", positive="pos", negative="neg")
    assert source.digest == load(write_jsonl(tmp_path / "a.jsonl", ROWS)).digest


def test_limit_takes_the_first_rows_and_reads_no_further(load: Load, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    with path.open("a") as file:
        file.write("not json\n")
    assert load(path, limit=2).rows["query"][:] == [row["query"] for row in ROWS[:2]]


def test_negatives_are_a_text_or_a_list_of_which_as_many_are_used_as_asked_for(load: Load, tmp_path: Path) -> None:
    rows = [{"query": "q", "positive": "p", "negative": ["n1", "n2", "n3"]}]
    for path in (write_jsonl(tmp_path / "a.jsonl", rows), write_parquet(tmp_path / "a.parquet", rows)):
        assert load(path, negatives=2).rows[0]["negatives"] == ["n1", "n2"]
        assert load(path, negatives=0).rows[0]["negatives"] == []
    bare = write_jsonl(tmp_path / "b.jsonl", [{"query": "q", "positive": "p"}])
    assert load(bare, negatives=0).rows[0]["negatives"] == []
    assert load(bare, negatives=0, negative=None).rows[0]["negatives"] == []


def test_the_cache_is_used_again_and_notices_every_change(load: Load, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    times = path.stat()

    def prepared() -> set[Path]:
        return {p for p in (tmp_path / "cache" / "sources").iterdir() if p.is_dir()}

    load(path)
    (folder,) = prepared()
    written = (folder / "rows.arrow").stat().st_mtime_ns
    load(path)
    assert prepared() == {folder}
    assert (folder / "rows.arrow").stat().st_mtime_ns == written

    path.write_bytes(path.read_bytes().replace(b"nothing", b"NOTHING"))  # same size, same time
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert load(path).rows[0]["negatives"] == ["NOTHING"]
    assert len(load(path, limit=1).rows) == 1
    assert len(prepared()) == 3


def test_many_rows_come_back_in_order(load: Load, tmp_path: Path) -> None:
    texts = [f"text {n}" for n in range(2500)]
    (tmp_path / "t.txt").write_text("\n".join(texts))
    rows = load(tmp_path / "t.txt", mode="unsupervised").rows
    assert rows["text"][:] == texts
    assert rows[1999] == {"text": "text 1999"}


def test_builtin_wordnet_is_the_vendored_sample(load: Load) -> None:
    source = load("builtin:wordnet", split="dev")
    first = load_wordnet("dev")[0]
    assert len(source.rows) == 500
    assert source.rows[0] == {
        "query": first["query"],
        "positive": first["positive"],
        "negatives": [first["negative"]],
    }
    assert load("builtin:wordnet", split="dev", mode="unsupervised", text="positive").rows[0] == {
        "text": first["positive"]
    }


def test_builtin_stsb_is_the_triplets(load: Load) -> None:
    source = load("builtin:stsb", split="dev")
    assert [row["query"] for row in source.rows] == [row["query"] for row in stsb_triplets("dev")]
    assert [row["negatives"] for row in source.rows] == [[row["negative"]] for row in stsb_triplets("dev")]
