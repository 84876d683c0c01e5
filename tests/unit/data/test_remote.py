import json
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from grace_exp.config.data import SourceConfig
from grace_exp.data.sources import LoadedSource
from grace_exp.errors import DataError

Load = Callable[..., LoadedSource]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder and the address at which it is served on this machine."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_file_behind_a_url_is_read_like_a_local_one(load: Load, served: tuple[Path, str]) -> None:
    folder, address = served
    row = {"query": "q", "positive": "p", "negative": "n"}
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    remote, local = load(f"{address}/rows.jsonl?download=true"), load(folder / "rows.jsonl")
    assert remote.digest == local.digest
    assert remote.rows.to_list() == [{"query": "q", "positive": "p", "negatives": ["n"]}]


def test_a_bad_row_behind_a_url_is_named_by_its_address_and_line(load: Load, served: tuple[Path, str]) -> None:
    folder, address = served
    (folder / "rows.jsonl").write_text('{"query": "q"}\n')
    with pytest.raises(DataError, match=rf"{address}/rows.jsonl, line 1"):
        load(f"{address}/rows.jsonl")


def test_a_url_without_a_file_says_so(load: Load, served: tuple[Path, str]) -> None:
    with pytest.raises(
        DataError, match=r"s\.path='http.*none\.csv' could not be fetched: FileNotFoundError(?s:.*)=FILE"
    ):
        load(f"{served[1]}/none.csv")


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("builtin:stsb", "builtin"),
        ("https://example.org/a.jsonl", "url"),
        ("s3://bucket/a.parquet", "url"),
        ("rows.csv", "file"),
        ("parts/*.gz", "file"),
        ("./folder/name", "file"),
        ("owner/dataset", "hub"),
    ],
)
def test_a_path_says_where_its_rows_are(path: str, kind: str) -> None:
    assert SourceConfig(path=path).kind == kind


def test_a_format_makes_any_name_a_file() -> None:
    assert SourceConfig(path="owner/dataset", format="jsonl").kind == "file"
