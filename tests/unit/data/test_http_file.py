"""Downloads from a local server that breaks off, changes the file, supports no ranges, or is gone."""

import gzip
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from grace_exp.data.http_file import http_file
from grace_exp.data.sources import LoadedSource
from grace_exp.errors import ConfigError, DataError

Load = Callable[..., LoadedSource]


class Server(ThreadingHTTPServer):
    """Serves one file, `content`, under any name.

    Attributes:
        breaks: After how many bytes of a body the connection is cut, one number for each of the next requests.
        ranges: Whether a part may be asked for.
        versioned: Whether it says which version it has.
        sent: (first byte, number of bytes sent) of every body so far.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = bytes(range(256)) * 4000
        self.breaks: list[int] = []
        self.ranges = self.versioned = True
        self.announced: int | None = None
        self.sent: list[tuple[int, int]] = []

    @property
    def etag(self) -> str:
        return f'"{hashlib.md5(self.content).hexdigest()}"'

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/rows.jsonl"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self._headers(200, self.server.announced or len(self.server.content))

    def do_GET(self) -> None:
        server, start = self.server, 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        fits = self.headers.get("If-Range", server.etag) == server.etag
        if asked and server.ranges and fits:
            start = int(asked[1])
        body = server.content[start:]
        self._headers(206 if start else 200, len(body), start)
        part = body[: server.breaks.pop(0)] if server.breaks else body
        server.sent.append((start, len(part)))
        self.wfile.write(part)
        if len(part) < len(body):
            self.close_connection = True
            self.connection.close()

    def _headers(self, code: int, length: int, start: int = 0) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(length))
        if code == 206:
            self.send_header("Content-Range", f"bytes {start}-{start + length - 1}/{start + length}")
        if self.server.versioned:
            self.send_header("ETag", self.server.etag)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 2**16)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)  # between attempts
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_download_that_breaks_off_goes_on_where_it_was(server: Server, tmp_path: Path) -> None:
    server.breaks = [300_000, 0, 200_000]
    assert http_file(server.url, tmp_path).read_bytes() == server.content
    starts = [start for start, _ in server.sent]
    assert starts[0] == 0 and starts == sorted(starts) and 0 < starts[1] <= starts[2] < starts[3] <= 500_000
    assert sum(sent for _, sent in server.sent) < 1.5 * len(server.content)


def test_a_start_after_one_that_gave_up_goes_on_where_that_was(server: Server, tmp_path: Path) -> None:
    server.breaks = [400_000] + [0] * 50
    with pytest.raises(Exception, match="peer closed connection"):
        http_file(server.url, tmp_path)
    server.breaks, server.sent = [], []
    assert http_file(server.url, tmp_path).read_bytes() == server.content
    ((start, sent),) = server.sent
    assert 0 < start <= 400_000 and sent == len(server.content) - start


def test_what_was_begun_of_another_version_is_not_gone_on_with(server: Server, tmp_path: Path) -> None:
    server.breaks = [400_000] + [0] * 50
    with pytest.raises(Exception, match="peer closed connection"):
        http_file(server.url, tmp_path)
    server.breaks, server.content = [], bytes(reversed(server.content))  # as long, and another one
    assert http_file(server.url, tmp_path).read_bytes() == server.content


@pytest.mark.parametrize(("ranges", "versioned"), [(False, True), (True, False), (False, False)])
def test_servers_without_ranges_or_versions_give_the_right_file(
    server: Server, tmp_path: Path, ranges: bool, versioned: bool
) -> None:
    server.ranges, server.versioned, server.breaks = ranges, versioned, [300_000]
    assert http_file(server.url, tmp_path).read_bytes() == server.content


def test_what_is_here_is_not_fetched_again_and_what_has_changed_is(server: Server, tmp_path: Path) -> None:
    first = http_file(server.url, tmp_path)
    assert http_file(server.url, tmp_path) == first and len(server.sent) == 1
    server.content += b"more"
    assert http_file(server.url, tmp_path).read_bytes() == server.content
    assert not first.exists()


def test_a_server_that_is_gone_leaves_the_copy_in_use(server: Server, tmp_path: Path) -> None:
    first = http_file(server.url, tmp_path)
    server.shutdown()
    server.server_close()
    with pytest.warns(UserWarning, match="does not answer: using the copy that was fetched before"):
        assert http_file(server.url, tmp_path) == first
    with pytest.raises(FileNotFoundError):
        http_file(server.url, tmp_path / "other")


def test_a_file_of_another_size_than_announced_is_refused(server: Server, tmp_path: Path) -> None:
    server.versioned, server.announced = False, len(server.content) - 10
    with pytest.raises(OSError, match="should be of size"):
        http_file(server.url, tmp_path)


def test_compressed_files_behind_a_url_are_read(load: Load, server: Server) -> None:
    row = {"query": "q", "positive": "p", "negative": "n"}
    server.content = gzip.compress(json.dumps(row).encode())
    assert load(f"{server.url}.gz?download=true").rows.to_list() == [
        {"query": "q", "positive": "p", "negatives": ["n"]}
    ]


def test_a_digest_is_compared(load: Load, server: Server, tmp_path: Path) -> None:
    server.content = b'{"query": "q", "positive": "p", "negative": "n"}\n'
    right, wrong = hashlib.sha256(server.content).hexdigest(), "0" * 64
    local = tmp_path / "rows.jsonl"
    local.write_bytes(server.content)
    for path in (server.url, local):
        assert len(load(path, sha256=right).rows) == 1
        with pytest.raises(DataError, match=rf"{right}, but data\.sources\.s\.sha256={wrong}"):
            load(path, sha256=wrong)
    with pytest.raises(ConfigError, match="names 2: name one"):
        (tmp_path / "more.jsonl").write_bytes(server.content)
        load(tmp_path / "*.jsonl", sha256=right)
    with pytest.raises(ConfigError, match="is the digest of a file, but 'builtin:stsb' is not a file"):
        load("builtin:stsb", sha256=right)
