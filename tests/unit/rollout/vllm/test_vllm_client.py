"""The client against a small server that the test starts."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from grace_exp.errors import EngineFailed, GraceError
from grace_exp.rollout.vllm import client as client_module
from grace_exp.rollout.vllm.client import RefusedByServer, ServerGone, VllmClient
from grace_exp.rollout.vllm.server import VllmServerEngine


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    together = threading.Barrier(8, timeout=20)
    dead = threading.Event()

    def do_GET(self) -> None:
        if self.path == "/health" and self.dead.is_set():
            self._answer(503, {})
            return
        self._answer(200, {"authorization": self.headers.get("Authorization"), "path": self.path})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/slow":
            time.sleep(1)
        if self.path == "/no":
            self._answer(400, {"error": "not that"})
            return
        if self.path == "/open":
            self.dead.wait(20)
            time.sleep(1)
            self.close_connection = True
            return
        if self.path == "/broken":
            self._answer(500, {"error": "the engine is dead"})
            return
        if self.path == "/die":
            self.close_connection = True
            return
        if self.path == "/together":
            self.together.wait()
        self._answer(200, body)

    def _answer(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    class Server(ThreadingHTTPServer):
        request_queue_size = 64

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_answers_come_in_the_order_of_the_requests_which_are_under_way_together(url: str) -> None:
    bodies = [{"number": number} for number in range(8)]
    assert VllmClient(url).post_all("/together", bodies, seconds=20) == bodies


def test_the_password_is_sent(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    found = VllmClient(url + "/").get("/x", seconds=20, params={"a": "b"})
    assert found == {"authorization": "Bearer secret", "path": "/x?a=b"}


def test_a_refusal_carries_what_the_server_said(url: str) -> None:
    with pytest.raises(RefusedByServer, match=r"refused /no: 400 .*not that") as caught:
        VllmClient(url).post("/no", {}, seconds=20)
    assert caught.value.status == 400


def test_a_slow_answer_fails_in_time(url: str) -> None:
    with pytest.raises(GraceError, match=r"not answered /slow within 0.1 s"):
        VllmClient(url).post("/slow", {}, seconds=0.1)


def test_a_broken_connection_and_a_closed_port_are_told_apart_from_a_refusal(url: str) -> None:
    with pytest.raises(ServerGone):
        VllmClient(url).post("/die", {}, seconds=20)
    nobody = VllmClient("http://127.0.0.1:9")
    with pytest.raises(ServerGone, match=r"no vLLM server answers at http://127\.0\.0\.1:9"):
        nobody.get("/x", seconds=20)
    assert not nobody.healthy()
    assert VllmClient(url).healthy()


class Dead:
    """Stands for the process of a run's own server."""

    def exit_status(self) -> str:
        return "killed by signal 9"

    def last_words(self) -> str:
        return "the end of server.log: no memory"


@pytest.mark.parametrize(
    ("path", "own", "message"),
    [
        ("/die", True, r"^the vLLM server is gone \(killed by signal 9\): the end of server\.log: no memory$"),
        ("/die", False, r"^no vLLM server answers at http"),
        ("/broken", True, r"^the vLLM server at \S+ refused /broken: 500 .*dead.* \(killed by signal 9\): the end of"),
        ("/broken", False, r"^the vLLM server at \S+ refused /broken: 500 .*dead"),
    ],
)
def test_an_engine_that_has_died_is_told_from_a_refusal(url: str, path: str, own: bool, message: str) -> None:
    engine: Any = object.__new__(VllmServerEngine)
    engine._process = Dead() if own else None
    client = VllmClient(url)
    with pytest.raises(EngineFailed, match=message):
        engine._call(lambda: client.post(path, {}, seconds=20))
    with pytest.raises(RefusedByServer):
        engine._call(lambda: client.post("/no", {}, seconds=20))


def test_a_call_that_a_dead_engine_leaves_open_is_given_up(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_WATCH_SECONDS", 0.02)
    threading.Timer(0.2, Handler.dead.set).start()
    begin = time.monotonic()
    try:
        with pytest.raises(ServerGone, match=r"leaves /open open: /health answers 503"):
            VllmClient(url).post("/open", {}, seconds=60)
        assert time.monotonic() - begin < 1.1  # before it would have answered
    finally:
        Handler.dead.clear()
