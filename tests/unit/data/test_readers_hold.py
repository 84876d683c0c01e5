"""For any file content a reader gives no traceback, names the line of every problem, and loses no good row."""

import csv
import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grace_exp.config.data import DataConfig, SourceConfig
from grace_exp.data.json_array import read_json
from grace_exp.data.lines import BadRow, Reader, Row, read_csv, read_jsonl, read_parquet, read_text
from grace_exp.data.sources import load_source
from grace_exp.errors import DataError

COLUMNS = ("query", "positive")
READERS: dict[str, Reader] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": read_csv,
    "tsv": partial(read_csv, delimiter="\t", quoted=False),
    "parquet": read_parquet,
}
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


def rows_of(reader: Reader, path: Path, content: bytes | str) -> list[Row | BadRow]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(reader(path, COLUMNS))


def good(rows: list[Row | BadRow]) -> list[dict[str, object]]:
    return [{name: row.fields[name] for name in COLUMNS} for row in rows if isinstance(row, Row)]


@pytest.mark.parametrize("kind", READERS)
@given(content=st.binary(max_size=200) | st.text('\n\r\t,"{}[]:a0\\', max_size=60).map(str.encode))
@quick
def test_garbage_gives_rows_bad_rows_or_an_error_that_names_the_file(kind: str, content: bytes, tmp_path: Path) -> None:
    header = {"csv": b"query,positive\n", "tsv": b"query\tpositive\n"}.get(kind, b"")
    for start in {b"", header}:
        path = tmp_path / f"garbage.{kind}"
        try:
            rows = rows_of(READERS[kind], path, start + content)
        except DataError as error:
            assert str(path) in str(error)
        else:
            assert all(row.line >= 1 for row in rows)


@given(content=st.binary(max_size=200))
@quick
def test_a_text_is_any_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "garbage.txt"
    path.write_bytes(content)
    assert len(list(read_text(path, ("text",)))) <= content.count(b"\n") + 1


line = st.text(st.characters(codec="utf-8", exclude_characters="\0\n\r"), max_size=20)


@given(lines=st.lists(st.tuples(text, text) | line, max_size=8))
@quick
def test_no_good_line_of_jsonl_is_lost(lines, tmp_path_factory: pytest.TempPathFactory) -> None:
    wanted = [dict(zip(COLUMNS, one, strict=True)) for one in lines if isinstance(one, tuple)]
    content = "\n".join(json.dumps(dict(zip(COLUMNS, x, strict=True))) if isinstance(x, tuple) else x for x in lines)
    found = good(
        [
            row
            for row in rows_of(read_jsonl, tmp_path_factory.mktemp("d") / "x.jsonl", content)
            if isinstance(row, BadRow) or set(COLUMNS) <= set(row.fields)
        ]
    )
    assert [row for row in found if row in wanted] == wanted


word = st.text(st.characters(codec="utf-8", exclude_characters="\0\n\r\t"), max_size=12).map(lambda some: f'"{some}x')


def written(rows: list[tuple[str, str]]) -> str:
    stream = io.StringIO()
    csv.writer(stream, quoting=csv.QUOTE_ALL).writerows(rows)
    return stream.getvalue()


sentence = st.text("ab \"',;\n", max_size=12).map(lambda some: f"a{some}b")


@given(before=st.lists(st.tuples(sentence, sentence), max_size=4), after=st.lists(st.tuples(sentence, sentence)))
@quick
def test_no_good_row_of_csv_is_lost_around_a_quote_that_is_not_closed(before, after, tmp_path: Path) -> None:
    content = "query,positive\r\n" + written(before) + 'x,"never closed\n' + written(after)
    rows = rows_of(read_csv, tmp_path / "x.csv", content)
    expected = [dict(zip(COLUMNS, row, strict=True)) for row in (*before, *after)]
    assert good(rows) == expected
    (bad,) = (row for row in rows if isinstance(row, BadRow))
    assert bad.raw == 'x,"never closed' and "broken quoting" in bad.reason


@given(rows=st.lists(st.tuples(word, word)))
@quick
def test_every_line_of_tsv_is_a_row_whatever_quotes_it_has(rows, tmp_path: Path) -> None:
    content = "query\tpositive\n" + "".join(f"{query}\t{positive}\n" for query, positive in rows)
    assert good(rows_of(READERS["tsv"], tmp_path / "x.tsv", content)) == [
        dict(zip(COLUMNS, row, strict=True)) for row in rows
    ]


def test_a_text_that_begins_with_a_quote_swallows_no_line_of_a_tsv_and_quoted_ones_are_a_setting(
    load: Callable[..., list[dict[str, str]]], tmp_path: Path
) -> None:
    file = tmp_path / "x.tsv"
    file.write_text('query\tpositive\n"to be\tor not\na\tb"\nc\td\n')
    assert load(file) == [('"to be', "or not"), ("a", 'b"'), ("c", "d")]
    file.write_text('query\tpositive\n"to\tbe"\t"a ""b"""\n')
    assert load(file, quoting="quoted") == [("to\tbe", 'a "b"')]
    with pytest.raises(DataError, match=r"found 3 columns; expected the 2 of the header \(are fields quoted\?"):
        load(file)


def test_long_fields_are_rows(load, tmp_path: Path) -> None:
    long = "word " * 60_000
    file = tmp_path / "x.csv"
    file.write_text(f'query,positive\n"{long}",b\n')
    assert load(file) == [(long, "b")]


@pytest.mark.parametrize(
    ("value", "reason"),
    [("1" * 5000, "a number has too many digits"), ("[" * 200_000 + "]" * 200_000, "it is nested too deep")],
    ids=["digits", "nesting"],
)
def test_json_beyond_python_is_a_bad_row(tmp_path: Path, value: str, reason: str) -> None:
    rows = rows_of(read_jsonl, tmp_path / "x.jsonl", f'{{"query": {value}}}\n{{"query": "a", "positive": "b"}}\n')
    assert isinstance(rows[0], BadRow) and f"broken JSON ({reason})" in rows[0].reason
    assert isinstance(rows[1], Row)
    try:
        rows = rows_of(read_json, tmp_path / "x.json", f'[{{"query": {value}}}, {{"query": "a", "positive": "b"}}]')
    except DataError as error:
        assert "x.json, after object 0 of the array: broken JSON" in str(error)
    else:
        assert isinstance(rows[1], Row)


def test_a_parquet_column_twice_and_a_damaged_part_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 3, names=["query", "query", "positive"]), path)
    with pytest.raises(DataError, match="'positive', each once; found 'query', 'query', 'positive'"):
        list(read_parquet(path, COLUMNS))
    pq.write_table(pa.table({"query": ["a" * 1000], "positive": ["b" * 1000]}), path, compression="zstd")
    whole = bytearray(path.read_bytes())
    whole[60:90] = bytes(30)
    path.write_bytes(whole)
    with pytest.raises(DataError, match=r"x\.parquet"):
        list(read_parquet(path, COLUMNS))
    when = pa.array([2**60], pa.timestamp("us"))
    pq.write_table(pa.table({"query": when, "positive": ["b"]}), path)
    (row,) = read_parquet(path, COLUMNS)
    assert isinstance(row, BadRow) and "cannot be read" in row.reason


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., list[tuple[str, str]]]:
    """Reads a file as a source, bad rows being errors."""

    def load(file: Path, **settings: object) -> list[tuple[str, str]]:
        source = SourceConfig(path=str(file), negative=None, **settings)
        data = DataConfig(name="x", mode="supervised", sources={"x": source}, negatives=0)
        rows = load_source("x", source, data, None, tmp_path / "cache").rows
        return [(row["query"], row["positive"]) for row in rows]

    return load
