"""Corpora with ids: shards, resumption, rejected rows, vector databases."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from grace_exp.config.compose import compose_config
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
    with pytest.raises(DataError, match=r"line 1: field 'id' holds no text or whole number"):
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
