import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from grace_exp.data.sources import LoadedSource
from grace_exp.errors import ConfigError, DataError

Load = Callable[..., LoadedSource]

GOOD = '{"query": "q", "positive": "p", "negative": "n"}'
SHAPE = 'expected one object a line: {"query": ..., "positive": ..., "negative": ...}'

BAD_JSONL: list[tuple[str, str, dict[str, Any]]] = [
    ('{"query": "q", "negative": "n"}', "field 'positive' is missing: found 'query', 'negative'", {}),
    ('{"query": "q", "positive": "p"}', "field 'negative' is missing: found 'query', 'positive'", {}),
    ("{}", "field 'query' is missing: found no field", {}),
    ('{"query": 3, "positive": "p", "negative": "n"}', "field 'query' is the number 3; expected a text", {}),
    ('{"query": true, "positive": "p", "negative": "n"}', "field 'query' is the truth value true; expected a text", {}),
    ('{"query": "q", "positive": null, "negative": "n"}', "field 'positive' is null; expected a text", {}),
    ('{"query": ["q"], "positive": "p", "negative": "n"}', "field 'query' is a list; expected a text", {}),
    (
        '{"query": "q", "positive": "p", "negative": {"a": 1}}',
        "field 'negative' is an object; expected a text or a list of texts",
        {},
    ),
    ('{"query": "", "positive": "p", "negative": "n"}', "field 'query' is empty; expected a text", {}),
    ('{"query": "q", "positive": " \\t ", "negative": "n"}', "field 'positive' is only white space", {}),
    ('{"query": "q", "positive": "p", "negative": [""]}', "text 1 of field 'negative' is empty; expected a text", {}),
    ('{"query": "q", "positive": "p", "negative": [4]}', "text 1 of field 'negative' is the number 4", {}),
    (
        '{"query": "q", "positive": "p", "negative": []}',
        "field 'negative' holds 0 texts; data.negatives=1 expects as many",
        {},
    ),
    (
        '{"query": "q", "positive": "123456", "negative": "n"}',
        "field 'positive' has 6 characters; data.max_characters=5 is the most expected",
        {"max_characters": 5},
    ),
    (
        '{"query": "q", "positive": "p", "negative": "\\ud83d"}',
        "text 1 of field 'negative': the lone surrogate \\ud83d at character 1 is not UTF-8; expected UTF-8 text",
        {},
    ),
    (
        '{"query": "q", positive}',
        f"broken JSON (Expecting property name enclosed in double quotes, column 16); {SHAPE}",
        {},
    ),
    ("", f"broken JSON (the line is blank); {SHAPE}", {}),
    ("[1, 2]", f"found a list; {SHAPE}", {}),
    ('"q"', f"found a text; {SHAPE}", {}),
]


@pytest.mark.parametrize(("line", "reason", "settings"), BAD_JSONL)
def test_a_bad_jsonl_row_is_named_by_file_and_line(
    load: Load, tmp_path: Path, line: str, reason: str, settings: dict[str, Any]
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f"{GOOD}\n{line}\n{GOOD}\n")
    with pytest.raises(DataError) as error:
        load(path, **settings)
    assert str(error.value).startswith(f"data.sources.s: {path}, line 2: {reason}")
    assert "data.on_bad_row=reject" in str(error.value)

    source = load(path, rejects=tmp_path / "rejects.jsonl", on_bad_row="reject", **settings)
    assert (len(source.rows), source.rejected) == (2, 1)
    (reject,) = [json.loads(found) for found in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert reject["reason"].startswith(reason)
    assert {**reject, "reason": ""} == {"file": str(path), "line": 2, "reason": "", "raw": line}


def test_too_few_negatives_are_counted(load: Load, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(GOOD + "\n")
    with pytest.raises(DataError, match=r"line 1: field 'negative' holds 1 texts; data\.negatives=2"):
        load(tmp_path / "a.jsonl", negatives=2)


@pytest.mark.parametrize(
    ("name", "start", "bad", "good", "mode"),
    [
        ("a.jsonl", b"", b'{"query": "\xff", "positive": "p", "negative": "n"}\n', GOOD.encode() + b"\n", "supervised"),
        ("a.csv", b"query,positive,negative\n", b"q,caf\xe9,n\n", b"q,p,n\n", "supervised"),
        ("a.txt", b"first\n", b"caf\xe9\n", b"second\n", "unsupervised"),
    ],
)
def test_bytes_that_are_no_utf8_spoil_only_their_row(
    load: Load, tmp_path: Path, name: str, start: bytes, bad: bytes, good: bytes, mode: str
) -> None:
    path = tmp_path / name
    path.write_bytes(start + good + bad + good)
    number = (start + good).count(b"\n") + 1
    byte = max(bad)
    with pytest.raises(
        DataError, match=rf"{re.escape(str(path))}, line {number}: byte 0x{byte:02x} at character \d+ is not"
    ):
        load(path, mode=mode)
    source = load(path, mode=mode, on_bad_row="reject", rejects=tmp_path / "r.jsonl")
    assert source.rejected == 1
    assert json.loads((tmp_path / "r.jsonl").read_text())["line"] == number


@pytest.mark.parametrize(
    ("body", "line", "reason"),
    [
        ("q,p,n\nq,p\nq,p,n\n", 3, "found 2 columns; expected the 3 of the header"),
        ("q,p,n\nq,p,n,more\nq,p,n\n", 3, "found 4 columns; expected the 3 of the header"),
        ("q,p,n\n\nq,p,n\n", 3, "found 0 columns; expected the 3 of the header"),
        ('"two\nlines",p,n\nq,p\nq,p,n\n', 4, "found 2 columns"),
        (
            'q,p,n\n"q" x,p,n\nq,p,n\n',
            3,
            "broken quoting (',' expected after '\"'); expected fields with quotes in them",
        ),
        ("q,p,n\nq,,n\nq,p,n\n", 3, "field 'positive' is empty; expected a text"),
        ('q,p,n\nq,p,n\n"never closed,p,n\n', 4, "broken quoting (unexpected end of data)"),
    ],
)
def test_a_bad_csv_row_is_named_by_the_line_where_it_begins(
    load: Load, tmp_path: Path, body: str, line: int, reason: str
) -> None:
    path = tmp_path / "a.csv"
    path.write_text("query,positive,negative\n" + body)
    with pytest.raises(DataError, match=re.escape(f"{path}, line {line}: {reason}")):
        load(path)
    source = load(path, on_bad_row="reject", rejects=tmp_path / "r.jsonl")
    assert (len(source.rows), source.rejected) == (2, 1)
    assert json.loads((tmp_path / "r.jsonl").read_text())["line"] == line


@pytest.mark.parametrize("header", ["query,positive\n", "query,positive,Negative\n", "query,positive,negative,query\n"])
def test_a_csv_header_must_have_each_column_once_even_when_rows_are_rejected(
    load: Load, tmp_path: Path, header: str
) -> None:
    path = tmp_path / "a.csv"
    path.write_text(header + "q,p,n\n")
    expected = f"{path}, line 1: expected the columns 'query', 'positive', 'negative', each once; found 'query', "
    with pytest.raises(DataError, match=re.escape(expected)):
        load(path, on_bad_row="reject")


def test_a_broken_csv_header_is_an_error(load: Load, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('"query" x,positive,negative\nq,p,n\n')
    with pytest.raises(DataError, match=r"a\.csv, line 1: the header is broken"):
        load(tmp_path / "a.csv")


def test_parquet_rows_are_named_by_their_number(load: Load, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = [{"query": "q", "positive": "p", "negative": ["n"]}, {"query": "q", "positive": None, "negative": ["n"]}]
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(DataError, match=re.escape(f"{path}, row 2: field 'positive' is null; expected a text")):
        load(path)
    load(path, on_bad_row="reject", rejects=tmp_path / "r.jsonl")
    assert json.loads(json.loads((tmp_path / "r.jsonl").read_text())["raw"]) == rows[1]


def test_parquet_bytes_that_are_no_utf8_spoil_only_their_row(load: Load, tmp_path: Path) -> None:
    binary = pa.array([b"good", b"caf\xe9"]).cast(pa.binary())
    texts = pa.Array.from_buffers(pa.string(), 2, binary.buffers())
    pyarrow.parquet.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"row 2: .*not UTF-8; expected UTF-8 text"):
        load(tmp_path / "a.parquet", mode="unsupervised")
    source = load(tmp_path / "a.parquet", mode="unsupervised", on_bad_row="reject")
    assert source.rows["text"][:] == ["good"]


def test_a_parquet_file_needs_its_columns_and_must_be_one(load: Load, tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pa.table({"anchor": ["q"], "positive": ["p"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: expected the columns 'query', .*; found 'anchor', 'positive'"):
        load(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_text("no")
    with pytest.raises(DataError, match=r"b\.parquet is not a parquet file"):
        load(tmp_path / "b.parquet")


def test_a_blank_line_amid_a_text_file_is_a_bad_row(load: Load, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("one\n\n  \ntwo\n\n")
    with pytest.raises(DataError, match=r"t\.txt, line 2: field 'text' is empty"):
        load(tmp_path / "t.txt", mode="unsupervised")
    source = load(tmp_path / "t.txt", mode="unsupervised", on_bad_row="reject", rejects=tmp_path / "r.jsonl")
    assert source.rows["text"][:] == ["one", "two"]
    assert [json.loads(line)["line"] for line in (tmp_path / "r.jsonl").read_text().splitlines()] == [2, 3]


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", ""), ("a.jsonl", "\n\n"), ("a.csv", ""), ("a.csv", "query,positive,negative\n"), ("a.tsv", "\n")],
)
def test_an_empty_file_is_an_error_whatever_is_done_with_bad_rows(
    load: Load, tmp_path: Path, name: str, content: str
) -> None:
    (tmp_path / name).write_text(content)
    for on_bad_row in ("error", "reject"):
        with pytest.raises(DataError, match=re.escape(f"{tmp_path / name} is empty: it holds no row")):
            load(tmp_path / name, on_bad_row=on_bad_row)


def test_an_empty_parquet_file_and_one_empty_file_of_several_are_errors(load: Load, tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet is empty"):
        load(tmp_path / "a.parquet", mode="unsupervised")
    (tmp_path / "1.txt").write_text("text")
    (tmp_path / "2.txt").write_text("")
    with pytest.raises(DataError, match=r"2\.txt is empty"):
        load(tmp_path / "?.txt", mode="unsupervised")


def test_a_source_whose_rows_are_all_bad_is_an_error(load: Load, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("x\n{}\n")
    with pytest.raises(
        DataError, match=re.escape(f"all 2 rows of '{path}' are bad. The first: {path}, line 1: broken")
    ):
        load(path, on_bad_row="reject")


@pytest.mark.parametrize("path", ["missing.jsonl", "missing/*.csv", "./missing", "/missing"])
def test_a_file_that_is_not_there_is_an_error(load: Load, path: str) -> None:
    with pytest.raises(DataError, match=re.escape(f"data.sources.s.path={path!r}: no such file")):
        load(path)


def test_an_unknown_ending_needs_a_format(load: Load, tmp_path: Path) -> None:
    (tmp_path / "a.data").write_text(GOOD)
    with pytest.raises(
        DataError, match=r"a\.data: the ending '\.data' names no format .* set data\.sources\.s\.format"
    ):
        load(tmp_path / "a.data")


def test_nothing_is_left_in_the_cache_after_an_error(load: Load, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(f"{GOOD}\nx\n")
    with pytest.raises(DataError):
        load(tmp_path / "a.jsonl")
    assert not [p for p in (tmp_path / "cache" / "sources").iterdir() if p.is_dir()]


def test_rejected_rows_are_listed_again_when_the_rows_come_from_the_cache(load: Load, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(f"{GOOD}\n{'x' * 1000}\n")
    rejects = tmp_path / "run" / "rejects.jsonl"
    first = load(tmp_path / "a.jsonl", on_bad_row="reject", rejects=rejects)
    listed = rejects.read_text()
    assert len(json.loads(listed)["raw"]) < 250
    second = load(tmp_path / "a.jsonl", on_bad_row="reject", rejects=rejects)
    assert rejects.read_text() == listed
    assert first.rejected == second.rejected == 1


def test_without_bad_rows_there_is_no_rejects_file(load: Load, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(GOOD)
    (tmp_path / "r.jsonl").write_text("of an earlier start")
    load(tmp_path / "a.jsonl", on_bad_row="reject", rejects=tmp_path / "r.jsonl")
    assert not (tmp_path / "r.jsonl").exists()


def test_contradictory_settings_are_config_errors(load: Load, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "a.jsonl").write_text(GOOD)
    with pytest.raises(ConfigError, match="plain text"):
        load(tmp_path / "a.txt")
    with pytest.raises(ConfigError, match=r"data\.negatives=1 but data\.sources\.s\.negative=null"):
        load(tmp_path / "a.jsonl", negative=None)
    with pytest.raises(ConfigError, match="no built-in data set 'builtin:mnli'"):
        load("builtin:mnli")
    with pytest.raises(ConfigError, match="with split 'validation'"):
        load("builtin:wordnet", split="validation")
