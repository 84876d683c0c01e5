"""Embedded corpora on disk: vectors, ids, texts and rationales, in one file or in shards that a restart finds again."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grace_exp.data.corpus_rows import CorpusRow
from grace_exp.tracking.atomic import atomic_path
from grace_exp.tracking.summary import write_json_atomic

_ROWS_AT_ONCE = 1000


class Shards:
    """The files of one output.

    Of `vectors.parquet` in shards: `vectors-00000.parquet`, ..., with their rationales, and `vectors.manifest.json`,
    which says what they were made of and which of them are whole.
    """

    def __init__(self, output: Path, identity: Mapping[str, Any], *, sharded: bool) -> None:
        """Look for shards of an earlier run.

        Args:
            output: `.npy` or `.parquet`.
            identity: Everything that decides the vectors: shards of another identity are written anew.
            sharded: Several files, numbered; false: one.
        """
        self._output = output
        self._identity = json.loads(json.dumps(dict(identity)))
        self._sharded = sharded
        self._manifest = output.with_suffix(".manifest.json")
        self.done: list[int] = []
        if sharded and self._manifest.is_file():
            record = json.loads(self._manifest.read_text(encoding="utf-8"))
            if record["identity"] == self._identity:
                self.done = [int(row) for row in record["rows"]]

    def path(self, number: int) -> Path:
        """The file of a shard."""
        if not self._sharded:
            return self._output
        return self._output.with_name(f"{self._output.stem}-{number:05d}{self._output.suffix}")

    def write(self, number: int, rows: Sequence[CorpusRow], vectors: NDArray[np.float32], flat: Sequence[str]) -> None:
        """Write a shard whole, or leave nothing of it.

        Args:
            number: Of the shard, from 0, in order.
            rows: Ids and texts.
            vectors: float32 [rows, hidden].
            flat: Rationales [rows x samples], those of a text side by side; empty without rationales.
        """
        output = self.path(number)
        output.parent.mkdir(parents=True, exist_ok=True)
        samples = len(flat) // len(rows)
        written = [list(flat[row * samples : (row + 1) * samples]) for row in range(len(rows))]
        with atomic_path(output.with_suffix(".rationales.jsonl")) as path, path.open("w", encoding="utf-8") as file:
            for place, (row, some) in enumerate(zip(rows, written, strict=True)):
                record = {"row": place, "id": row.id, "text": row.text, "rationales": some}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        with atomic_path(output) as path:
            if output.suffix == ".npy":
                with path.open("wb") as binary:
                    np.save(binary, vectors)
            else:
                _write_parquet(path, rows, written, vectors)
        if self._sharded:
            self.done = [*self.done[:number], len(rows)]
            write_json_atomic(self._manifest, {"identity": self._identity, "rows": self.done})


def _write_parquet(
    path: Path, rows: Sequence[CorpusRow], rationales: list[list[str]], vectors: NDArray[np.float32]
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    counted = all(isinstance(row.id, int) for row in rows)
    schema = pa.schema(
        {
            "id": pa.int64() if counted else pa.string(),
            "text": pa.string(),
            "rationales": pa.list_(pa.string()),
            "embedding": pa.list_(pa.float32(), vectors.shape[1]),
        }
    )
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            some = slice(start, start + _ROWS_AT_ONCE)
            flat = pa.array(vectors[some].ravel(), pa.float32())
            columns = [
                pa.array([row.id if counted else str(row.id) for row in rows[some]], schema.field("id").type),
                pa.array([row.text for row in rows[some]]),
                pa.array(rationales[some], schema.field("rationales").type),
                pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
            ]
            writer.write_batch(pa.record_batch(columns, schema))
