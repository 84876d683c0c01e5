"""Encoders of trained runs, and encodings that are killed."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from grace_exp import GraceEncoder
from grace_exp.config.compose import compose_config
from grace_exp.encoder.cache import RationaleCache
from grace_exp.jobs import run as run_job
from grace_exp.rollout.protocol import Completion, Request
from grace_exp.rollout.transformers_engine import TransformersEngine

TEXTS = ["A cat sleeps.", "Rain in May", "Prices fell by 3 %", "A cat sleeps."]


@pytest.fixture(scope="module")
def trained(train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with adapters and both exports."""
    overrides = [
        "job.steps=2",
        "optim.learning_rate=0.01",
        "callbacks.export=[merged,adapter]",
        "++backbone.lora.rank=4",
    ]
    folder: Path = train(*overrides, "++backbone.lora.rank=4", folder=tmp_path_factory.mktemp("trained") / "run").path
    return folder


def test_a_trained_run_embeds_the_same_from_every_form_it_has(trained: Path, tmp_path: Path) -> None:
    encoder = GraceEncoder.from_pretrained(trained, cache=False, device="cpu")
    assert (encoder.max_tokens, encoder.max_seq_length) == (6, 128)
    assert encoder.prompt.system == "Say in one sentence what the following text means."
    vectors = np.asarray(encoder.encode(TEXTS))
    adapter = GraceEncoder.from_pretrained(trained / "export" / "adapter", cache=False, device="cpu")
    np.testing.assert_allclose(adapter.encode(TEXTS), vectors, atol=1e-4)

    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    common = ["+experiment=demo_tiny", "hardware.threads=1", "job=embed", f"job.input={tmp_path / 'texts.txt'}"]
    common += [f"cache_dir={tmp_path}", "callbacks.progress=none", f"job.output={tmp_path / 'vectors.npy'}"]
    for source in (
        [f"job.model={trained}"],
        [f"job.resume={trained}", "++backbone.lora.rank=4", "rollout.max_tokens=6", "job.role=query"],
    ):
        figures = run_job(compose_config([*common, *source], tmp_path / "out"))
        assert figures["embed/texts"] == 4
        assert len(RationaleCache(tmp_path / "embeddings")) > 0
        np.testing.assert_allclose(np.load(tmp_path / "vectors.npy"), vectors, atol=1e-4)
        rows = [json.loads(line) for line in (tmp_path / "vectors.rationales.jsonl").read_text().splitlines()]
        assert [row["text"] for row in rows] == TEXTS
        assert [row["rationales"] for row in rows] == [[text] for text in encoder.rationales]
    untrained = GraceEncoder.from_pretrained("tiny", cache=False, device="cpu", prompt=encoder.prompt, max_tokens=6)
    assert np.abs(np.asarray(untrained.encode(TEXTS)) - vectors).max() > 0.1


def test_embed_reads_columns_and_writes_parquet(tmp_path: Path) -> None:
    pd.DataFrame({"body": TEXTS, "other": range(4)}).to_csv(tmp_path / "texts.csv", index=False)
    overrides = ["+experiment=demo_tiny", "hardware.threads=1", "job=embed", f"job.input={tmp_path / 'texts.csv'}"]
    overrides += ["job.column=body", f"job.output={tmp_path / 'out.parquet'}", f"cache_dir={tmp_path / 'cache'}"]
    overrides += ["job.encode.samples=2", "job.encode.temperature=1.0", "job.encode.normalize=true"]
    run_job(compose_config([*overrides, "callbacks.progress=none"], tmp_path / "run"))
    table = pd.read_parquet(tmp_path / "out.parquet")
    assert list(table.text) == TEXTS
    assert [len(some) for some in table.rationales] == [2] * 4
    np.testing.assert_allclose(np.linalg.norm(np.stack(table.embedding), axis=1), 1, atol=1e-6)
    clear = ["+experiment=demo_tiny", "job=clear_cache", f"cache_dir={tmp_path / 'cache'}"]
    figures = run_job(compose_config(clear, tmp_path / "run"))
    assert figures["cache/freed_bytes"] > 0
    assert len(RationaleCache(tmp_path / "cache" / "embeddings")) == 0


KILLED = """
import sys, time
from grace_exp import GraceEncoder
encoder = GraceEncoder.from_pretrained("tiny", cache=sys.argv[1], device="cpu", prompt="Say it.", max_tokens=4)
write, calls = encoder.engine.generate, []
def generate(requests):
    calls.append(requests)
    if len(calls) == 4:
        print("in the fourth batch", flush=True)
        time.sleep(600)
    return write(requests)
encoder.engine.generate = generate
encoder.encode([f"text {number}" for number in range(20)], batch_size=2)
"""


def test_a_killed_encoding_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "in the fourth batch\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    answered: list[int] = []
    write = TransformersEngine.generate

    def counting(self: TransformersEngine, requests: Sequence[Request]) -> list[list[Completion]]:
        answered.append(len(requests))
        return write(self, requests)

    texts = [f"text {number}" for number in range(20)]
    settings: Any = {"device": "cpu", "prompt": "Say it.", "max_tokens": 4}
    expected = GraceEncoder.from_pretrained("tiny", cache=False, **settings).encode(texts)
    monkeypatch.setattr(TransformersEngine, "generate", counting)
    vectors = GraceEncoder.from_pretrained("tiny", cache=tmp_path, **settings).encode(texts)
    assert sum(answered) == 20 - 6
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
