"""The server, tested with OpenAI's client and others."""

import base64
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import uvicorn

from grace_exp import GraceEncoder
from grace_exp.config.job import EncodeConfig
from grace_exp.config.prompt import InstructionsConfig, PromptConfig
from grace_exp.config.serving import ServeConfig
from grace_exp.data.batch import Role
from grace_exp.encoder.cache import RationaleCache
from grace_exp.encoder.serving.answers import Answers
from grace_exp.encoder.serving.app import EmbeddingServer

TEXTS = ["A cat sleeps.", "Rain in May", "", "Prices fell by 3 %"]
PROMPT = PromptConfig(name="p", system="Read.", instructions=InstructionsConfig(query="A question."), max_tokens=128)
LIMITS = ServeConfig(queue_texts=4, request_texts=8, body_mib=0.01, timeout_s=20.0)


def encoder(cache: Path | bool) -> GraceEncoder:
    return GraceEncoder.from_pretrained("tiny", cache=cache, device="cpu", prompt=PROMPT, max_tokens=6)


class Served:
    """A server in a thread of this process."""

    def __init__(self, cache: Path, limits: ServeConfig = LIMITS, **settings: Any) -> None:
        self.encoder = encoder(cache)
        answers = Answers(self.encoder, EncodeConfig())
        self.server = EmbeddingServer(answers, limits, role=Role.POSITIVE, **settings)
        self.uvicorn = uvicorn.Server(uvicorn.Config(self.server.app, port=0, log_level="warning"))
        self.thread = threading.Thread(target=self.uvicorn.run)
        self.thread.start()
        while not self.uvicorn.started:
            time.sleep(0.01)
        port = self.uvicorn.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"

    def stop(self) -> None:
        self.uvicorn.should_exit = True
        self.thread.join(20)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    server = Served(tmp_path_factory.mktemp("cache"))
    yield server
    server.stop()


@pytest.fixture
def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="any", max_retries=0)


def test_the_openai_client_gets_the_encoders_vectors(served: Served, client: openai.OpenAI) -> None:
    reference = encoder(False)
    for model, role in (("grace", "document"), ("grace:document", "document"), ("grace:query", "query")):
        expected = np.asarray(reference.encode(TEXTS, role=role))
        packed = client.embeddings.create(model=model, input=TEXTS)  # base64, the client's default
        plain = client.embeddings.create(model=model, input=TEXTS, encoding_format="float")
        np.testing.assert_allclose([item.embedding for item in packed.data], expected, atol=1e-6)
        assert [item.embedding for item in packed.data] == [item.embedding for item in plain.data]
        assert [item.index for item in plain.data] == [0, 1, 2, 3]
        assert plain.usage.total_tokens - plain.usage.prompt_tokens == sum(reference.rationale_tokens)
    assert not np.allclose(expected, reference.encode(TEXTS, role="document"))
    short = client.embeddings.create(model="grace", input="A cat sleeps.", dimensions=8)
    np.testing.assert_allclose(short.data[0].embedding, reference.encode_document("A cat sleeps.")[:8], atol=1e-6)
    assert [model.id for model in client.models.list()] == ["grace", "grace:query", "grace:document"]
    assert client.models.retrieve("grace:query").id == "grace:query"


def test_rationales_come_with_the_vectors_and_a_budget_may_be_given(served: Served, client: openai.OpenAI) -> None:
    reference = encoder(False)
    reference.encode_document(TEXTS)
    raw = client.embeddings.with_raw_response.create(model="grace", input=TEXTS, extra_body={"rationales": True})
    body = raw.http_response.json()
    assert [item["rationales"] for item in body["data"]] == [[text] for text in reference.rationales]
    for budget in (0, 3):
        found = client.embeddings.create(model="grace", input=TEXTS, extra_body={"max_tokens": budget})
        expected = reference.encode_document(TEXTS, max_tokens=budget)
        np.testing.assert_allclose([item.embedding for item in found.data], expected, atol=1e-6)


def test_what_is_cached_never_waits_for_the_model(served: Served, client: openai.OpenAI) -> None:
    client.embeddings.create(model="grace", input=["seen before"])
    before = served.server.metrics.texts.labels("cache")._value.get()
    again = client.embeddings.with_raw_response.create(model="grace", input=["seen before"])
    assert again.headers["x-grace-source"] == "cache"
    assert served.server.metrics.texts.labels("cache")._value.get() == before + 1
    page = httpx.get(f"{served.url}/metrics").text
    assert 'grace_requests_total{status="200"}' in page and "grace_batch_texts_bucket" in page
    assert httpx.get(f"{served.url}/health").json()["status"] == "ok"


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"model": "grace", "input": [1, 2, 3]}, 400, "check_embedding_ctx_length=False"),
        ({"model": "grace", "input": [[1, 2], [3]]}, 400, "check_embedding_ctx_length=False"),
        ({"model": "other", "input": "x"}, 404, "grace:query"),
        ({"model": "grace", "input": []}, 400, "input"),
        ({"model": "grace", "input": [None]}, 400, "input.0"),
        ({"model": "grace"}, 400, "input"),
        ({"model": "grace", "input": "x", "dimensions": 65}, 400, "the model has 64"),
        ({"model": "grace", "input": "x", "max_tokens": 7}, 400, "6 is the model's budget"),
        ({"model": "grace", "input": ["x"] * 9}, 400, "8 is the most"),
        ({"model": "grace", "input": "x", "encoding_format": "int8"}, 400, "encoding_format"),
        ({"model": "grace", "input": "x" * 20_000}, 413, "0.01 MiB"),
        (["x"], 400, "not a JSON object"),
    ],
)
def test_what_cannot_be_answered_is_refused_as_openai_does(
    served: Served, body: Any, status: int, message: str
) -> None:
    found = httpx.post(f"{served.url}/v1/embeddings", json=body)
    assert found.status_code == status
    assert message in found.json()["error"]["message"]
    assert httpx.post(f"{served.url}/v1/embeddings", content=b"{").status_code == 400


def test_load_beyond_the_queue_is_refused_and_nothing_else_is_lost(served: Served) -> None:
    def ask(number: int) -> httpx.Response:
        body = {"model": "grace", "input": [f"load {number} {part}" for part in range(3)]}
        return httpx.post(f"{served.url}/v1/embeddings", json=body, timeout=60)

    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(ask, range(12)))
    refused = [response for response in found if response.status_code == 429]
    assert refused and all(int(response.headers["retry-after"]) >= 1 for response in refused)
    assert {response.status_code for response in found} == {200, 429}
    patient = openai.OpenAI(base_url=f"{served.url}/v1", api_key="any", max_retries=5)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: patient.embeddings.create(model="grace", input=[f"more {n}"]), range(8)))
    assert len(answers) == 8


def test_a_key_and_a_deadline(tmp_path: Path) -> None:
    server = Served(tmp_path, replace(LIMITS, timeout_s=1e-6), api_key="secret")
    try:
        for key, status in (("wrong", 401), ("secret", 504)):
            headers = {"Authorization": f"Bearer {key}"}
            body = {"model": "grace", "input": "x"}
            found = httpx.post(f"{server.url}/v1/embeddings", json=body, headers=headers, timeout=30)
            assert found.status_code == status
        assert httpx.get(f"{server.url}/v1/models").status_code == 401
    finally:
        server.stop()


def test_langchain_and_mtebs_wrapper_embed_through_it(
    served: Served, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tiktoken
    from langchain_openai import OpenAIEmbeddings
    from mteb.models.model_implementations.openai_models import OpenAIModel

    reference = encoder(False)
    settings: Any = {"model": "grace:document", "base_url": f"{served.url}/v1", "api_key": "any"}
    embeddings = OpenAIEmbeddings(check_embedding_ctx_length=False, **settings)
    np.testing.assert_allclose(
        embeddings.embed_documents(["Rain in May"]), reference.encode_document(["Rain in May"]), atol=1e-6
    )
    letters = tiktoken.Encoding(
        "l", pat_str=".", mergeable_ranks={bytes([b]): b for b in range(256)}, special_tokens={}
    )
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: letters)  # mteb's wrapper fetches OpenAI's
    wrapper = OpenAIModel("grace:document", max_tokens=500, embed_dim=64, client=client)
    found = wrapper.encode([{"text": ["Rain in May"]}], task_metadata=None, hf_split="", hf_subset="")  # type: ignore
    np.testing.assert_allclose(found, reference.encode_document(["Rain in May"]), atol=1e-6)


def start(folder: Path, *settings: str) -> tuple[subprocess.Popen[str], str]:
    """A server in a process of its own, and its address."""
    command = [sys.executable, "-m", "grace_exp", "+experiment=demo_tiny", "job=serve", "job.port=0"]
    command += [f"cache_dir={folder}", f"hydra.run.dir={folder / 'run'}", "rollout.max_tokens=40", *settings]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ})
    assert process.stdout is not None
    for line in process.stdout:
        if "http://" in line:
            return process, "http://" + line.split("http://")[1].strip()
    raise AssertionError("the server did not start")


def test_accepted_requests_survive_sigterm_and_a_restart_serves_from_the_cache(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(24)]
    process, url = start(tmp_path)
    client = openai.OpenAI(base_url=url, api_key="any", max_retries=0, timeout=60)
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(client.embeddings.create, model="grace", input=texts)
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        first = pending.result(60)
    assert process.wait(30) == 0
    assert len(first.data) == 24
    process, url = start(tmp_path)
    try:
        client = openai.OpenAI(base_url=url, api_key="any", max_retries=0, timeout=60)
        again = client.embeddings.with_raw_response.create(model="grace", input=texts)
        assert again.headers["x-grace-source"] == "cache"
        vectors = [item.embedding for item in again.parse().data]
        assert vectors == [item.embedding for item in first.data]
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_base64_is_little_endian_float32(served: Served) -> None:
    body = {"model": "grace", "input": ["x"], "encoding_format": "base64"}
    text = httpx.post(f"{served.url}/v1/embeddings", json=body).json()["data"][0]["embedding"]
    assert np.frombuffer(base64.b64decode(text), "<f4").shape == (64,)


def test_a_killed_server_keeps_what_it_answered_and_the_batches_that_it_finished(tmp_path: Path) -> None:
    settings = ("job.encode.batch_size=2", "hardware.threads=1")
    process, url = start(tmp_path, *settings)
    cache = RationaleCache(tmp_path / "embeddings")
    texts = [f"text {number}" for number in range(120)]
    with openai.OpenAI(base_url=url, api_key="any", max_retries=0, timeout=120) as client:
        answered = client.embeddings.create(model="grace", input=["answered"]).data[0].embedding
        entries = len(cache)
        with ThreadPoolExecutor(1) as pool:
            pending = pool.submit(client.embeddings.create, model="grace", input=texts)
            while len(cache) < entries + 8 and not pending.done():
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            with pytest.raises(openai.APIConnectionError):  # it was not answered, and the client is told so
                pending.result(60)
    process.wait(30)
    kept = len(cache)
    assert kept >= entries + 8
    process, url = start(tmp_path, *settings)
    try:
        with openai.OpenAI(base_url=url, api_key="any", max_retries=0, timeout=120) as client:
            again = client.embeddings.with_raw_response.create(model="grace", input=["answered"])
            assert again.headers["x-grace-source"] == "cache"
            assert again.parse().data[0].embedding == answered
            assert len(cache) == kept
            whole = client.embeddings.create(model="grace", input=texts)
            assert len(whole.data) == 120
            assert len(cache) == entries + 2 * 120  # a rationale and an embedding each: none was lost, none is double
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
