"""The server of embeddings with rationales by vLLM."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import openai

from grace_exp.config.compose import compose_config
from grace_exp.jobs.run_encoder import build_encoder

TEXTS = ["A cat sleeps.", "Rain in May", "", "Prices fell by 3 %"]
SETTINGS = ["+experiment=demo_tiny", "rollout.max_tokens=8", "job.role=document", "hardware=cpu", "hardware.threads=1"]


def test_vllm_writes_for_the_server_and_vectors_are_those_of_the_encoder(tmp_path: Path) -> None:
    import torch

    config = compose_config([*SETTINGS, "job=serve", "job.encode.cache_gib=0"], tmp_path / "reference")
    encoder = build_encoder(config, torch.device("cpu"))
    expected = np.asarray(encoder.encode_document(TEXTS))
    written = encoder.rationales
    command = [sys.executable, "-m", "grace_exp", *SETTINGS, "job=serve", "job.port=0", "rollout=vllm"]
    command += [f"cache_dir={tmp_path}", f"hydra.run.dir={tmp_path / 'run'}", "job.encode.batch_size=256"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ})
    assert process.stdout is not None
    try:
        url = next("http://" + line.split("http://")[1].strip() for line in process.stdout if "http://" in line)
        with openai.OpenAI(base_url=url, api_key="any", max_retries=0, timeout=300) as client:
            for source in ("model", "cache"):
                raw = client.embeddings.with_raw_response.create(
                    model="grace", input=TEXTS, extra_body={"rationales": True}
                )
                assert raw.headers["x-grace-source"] == source
                data = raw.http_response.json()["data"]
                assert [item["rationales"] for item in data] == [[text] for text in written]
                found = [item.embedding for item in raw.parse().data]
                np.testing.assert_allclose(found, expected, atol=1e-4)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
