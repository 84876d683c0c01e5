"""Corpora with ids: shards, resumption, rejected rows, vector databases."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from grace_exp.config.compose import compose_config
from grace_exp.encoder.adaptive_rule import AdaptiveRule
from grace_exp.encoder.encoder import GraceEncoder
from grace_exp.errors import DataError
from grace_exp.jobs import run as run_job


@pytest.fixture
def run(tmp_path: Path) -> Any:
    def run(*overrides: str) -> dict[str, float]:
        common = ["+experiment=demo_tiny", "hardware=cpu", "hardware.threads=1", "job=embed", "callbacks.progress=none"]
        common += [f"cache_dir={tmp_path / 'cache'}", "rollout.max_tokens=4"]
        return run_job(compose_config([*common, *overrides], tmp_path / "run"))

    return run


def test_empty_lines_stop_it_with_advice_that_it_follows(run: Any, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("first\n\n   \nfourth\n")
    files = [f"job.input={tmp_path / 'texts.txt'}", f"job.output={tmp_path / 'out.npy'}"]
    with pytest.raises(DataError, match=r"line 2: .*empty.*data\.on_bad_row=reject"):
        run(*files)
    assert not (tmp_path / "out.npy").exists()
    figures = run(*files, "data.on_bad_row=reject")
    assert (figures["embed/texts"], figures["embed/rejected"]) == (2, 2)
    rejects = [json.loads(line) for line in (tmp_path / "run" / "rejects.jsonl").read_text().splitlines()]
    assert [row["line"] for row in rejects] == [2, 3]
    rows = [json.loads(line) for line in (tmp_path / "out.rationales.jsonl").read_text().splitlines()]
    assert [(row["row"], row["id"], row["text"]) for row in rows] == [(0, 0, "first"), (1, 3, "fourth")]
    vectors = np.load(tmp_path / "out.npy")
    assert vectors.shape == (2, 64) and np.isfinite(vectors).all()


def test_shards_keep_ids_and_a_restart_computes_what_is_missing(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in range(2):
        records = [{"id": f"d{part}{row}", "body": f"text {part} {row}"} for row in range(4)]
        pd.DataFrame([*records, {"id": f"e{part}", "body": ""}]).to_parquet(tmp_path / f"part{part}.parquet")
    settings = [f"job.input='{tmp_path}/part*.parquet'", "job.column=body", "job.id_column=id", "job.shard_rows=3"]
    settings += [f"job.output={tmp_path / 'v.parquet'}", "data.on_bad_row=reject", "job.encode.cache_gib=0"]
    assert run(*settings)["embed/rejected"] == 2
    shards = sorted(tmp_path.glob("v-*.parquet"))
    assert [path.name for path in shards] == ["v-00000.parquet", "v-00001.parquet", "v-00002.parquet"]
    table = pd.concat([pd.read_parquet(path) for path in shards])
    assert list(table.id) == [f"d{part}{row}" for part in range(2) for row in range(4)]
    assert list(table.text) == [f"text {part} {row}" for part in range(2) for row in range(4)]
    first = np.stack(table.embedding)

    shards[1].unlink()
    encoded: list[list[str]] = []
    encode = GraceEncoder.encode

    def counting(self: GraceEncoder, texts: list[str], *args: Any, **kwargs: Any) -> Any:
        encoded.append(list(texts))
        return encode(self, texts, *args, **kwargs)

    monkeypatch.setattr(GraceEncoder, "encode", counting)
    run(*settings)
    assert encoded == [["text 0 3", "text 1 0", "text 1 1"]]
    again = np.stack(pd.concat([pd.read_parquet(path) for path in shards]).embedding)
    np.testing.assert_allclose(again, first, atol=1e-6)
    encoded.clear()
    run(*settings, "job.role=query", "prompt.instructions.query=Ask.")  # other vectors: all of them anew
    assert len(encoded) == 3


def test_ids_must_be_there_and_differ(run: Any, tmp_path: Path) -> None:
    lines = [{"id": 1, "text": "a"}, {"id": 1, "text": "b"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    settings = [f"job.input={tmp_path / 'a.jsonl'}", "job.id_column=id", f"job.output={tmp_path / 'v.npy'}"]
    with pytest.raises(DataError, match="the id 1 occurs twice"):
        run(*settings)
    (tmp_path / "a.jsonl").write_text('{"text": "a"}')
    with pytest.raises(DataError, match=r"line 1: field 'id' holds neither text nor a whole number"):
        run(*settings)


def test_faiss_and_lancedb_load_what_it_writes(run: Any, tmp_path: Path) -> None:
    import faiss
    import lancedb
    import pyarrow.parquet as pq

    texts = ["A cat sleeps.", "Rain in May", "Prices fell by 3 %"]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"id": f"d{n}", "text": t}) for n, t in enumerate(texts)))
    output = tmp_path / "v.parquet"
    run(f"job.input={tmp_path / 'a.jsonl'}", "job.id_column=id", f"job.output={output}", "job.encode.normalize=true")

    table = pq.read_table(output)
    vectors = np.stack(table["embedding"].to_numpy())
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    scores, rows = index.search(vectors[1:2], 2)
    assert table["id"][int(rows[0, 0])].as_py() == "d1"
    assert scores[0, 0] == pytest.approx(1, abs=1e-5)

    database = lancedb.connect(str(tmp_path / "lance"))
    documents = database.create_table("documents", table)
    found = documents.search(vectors[2], vector_column_name="embedding").limit(1).to_list()
    assert found[0]["id"] == "d2"


def test_two_processes_write_what_one_writes(run: Any, tmp_path: Path) -> None:
    """In shards, with rejected and equal texts, and rationales to the texts that a rule chooses."""
    model = tmp_path / "model"
    encoder = GraceEncoder.from_pretrained("tiny", cache=False, device="cpu", max_tokens=4)
    texts = ["A cat sleeps.", "Rain in May", "", "Prices fell", "Rain in May", "One", "Two cats", "Three"]
    plain = np.asarray(encoder.encode_document([text for text in texts if text], mode="prompt_only"))
    first = plain[:, 0] / np.linalg.norm(plain, axis=1)
    weights = (100.0, *[0.0] * (plain.shape[1] - 1))
    encoder.rule = AdaptiveRule(
        weights=weights, log_norm=0.0, document=0.0, bias=-100 * float(first.mean()), threshold=0.5
    )
    encoder.save_pretrained(model)
    records = [{"id": f"d{row}", "text": text} for row, text in enumerate(texts)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    settings = [f"job.model={model}", f"job.input={tmp_path / 'a.jsonl'}", "job.id_column=id", "job.shard_rows=3"]
    settings += ["job.encode.mode=adaptive", "job.encode.cache_gib=0", "data.on_bad_row=reject"]
    assert run(*settings, f"job.output={tmp_path / 'one.parquet'}")["embed/texts"] == 7
    command = [sys.executable, "-m", "grace_exp", "+experiment=demo_tiny", "job=embed", "hardware=cpu", *settings]
    command += [f"job.output={tmp_path / 'two.parquet'}", "hardware.devices=2", "hardware.strategy=ddp"]
    command += ["hardware.threads=1", "callbacks.progress=none", f"cache_dir={tmp_path / 'cache'}"]
    subprocess.run([*command, f"hydra.run.dir={tmp_path / 'two'}"], check=True, timeout=300)
    assert len((tmp_path / "two" / "rejects.jsonl").read_text().splitlines()) == 1
    one, two = (
        pd.concat([pd.read_parquet(tmp_path / f"{name}-{number:05d}.parquet") for number in range(3)])
        for name in ("one", "two")
    )
    assert list(two.id) == list(one.id) == ["d0", "d1", "d3", "d4", "d5", "d6", "d7"]
    written = [[len(text) > 0 for text in some] for some in two.rationales]
    assert len({some[0] for some in written}) == 2
    assert [list(some) for some in two.rationales] == [list(some) for some in one.rationales]
    np.testing.assert_allclose(np.stack(two.embedding), np.stack(one.embedding), atol=1e-5)
