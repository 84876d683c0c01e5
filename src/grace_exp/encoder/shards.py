"""Embedded corpora on disk: vectors, ids, texts and rationales, in one file or in shards that a restart reuses.

Workers on any number of machines write one output without locks. The number of a shard decides its worker, each worker
has its own manifest, and a worker that finds all shards complete writes the manifest of the output.
"""

import contextlib
import glob
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
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

    In shards, `vectors.parquet` becomes `vectors-00000.parquet`, ..., with their rationales, and
    `vectors.manifest.json` says how they were made and which of them are complete. Worker 2 of 8 has
    `vectors.manifest-2-of-8.json`.
    """

    def __init__(
        self, output: Path, identity: Mapping[str, Any], *, sharded: bool, share: tuple[int, int] = (0, 1)
    ) -> None:
        """Look for shards of an earlier run, from any worker.

        Args:
            output: `.npy` or `.parquet`.
            identity: Everything that decides the vectors; shards of another identity are written again.
            sharded: Whether there are several numbered files; false: one file.
            share: The number of this worker, from 0, and the number of workers.
        """
        self._output = output
        self._identity = json.loads(json.dumps(dict(identity)))
        self._sharded = sharded
        self._number, self._workers = share
        self._whole = output.with_suffix(".manifest.json")
        name = f".manifest-{self._number}-of-{self._workers}.json"
        self._manifest = self._whole if self._workers == 1 else output.with_suffix(name)
        self.done: dict[int, int] = self._found() if sharded else {}
        """The number of rows of every complete shard, by the shard's number."""

    def _found(self) -> dict[int, int]:
        """Return them from all manifests, also from those of another number of workers."""
        found: dict[int, int] = {}
        for _, record in self._manifests():
            if record["identity"] == self._identity:
                rows = record["rows"]
                pairs = rows.items() if isinstance(rows, dict) else enumerate(rows)
                found |= {int(number): int(size) for number, size in pairs if self.path(int(number)).is_file()}
        return found

    def _manifests(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        for path in sorted(self._output.parent.glob(glob.escape(self._output.stem) + ".manifest*.json")):
            with contextlib.suppress(FileNotFoundError):  # another worker has just deleted it
                yield path, json.loads(path.read_text(encoding="utf-8"))

    def _drop_others(self) -> None:
        """Delete manifests of another identity, whose shards are overwritten."""
        for path, record in self._manifests():
            if record["identity"] != self._identity:
                path.unlink(missing_ok=True)

    def mine(self, number: int) -> bool:
        """Whether this worker writes the shard."""
        return number % self._workers == self._number

    def path(self, number: int) -> Path:
        """Return the file of a shard."""
        if not self._sharded:
            return self._output
        return self._output.with_name(f"{self._output.stem}-{number:05d}{self._output.suffix}")

    def write(self, number: int, rows: Sequence[CorpusRow], vectors: NDArray[np.float32], flat: Sequence[str]) -> None:
        """Write a whole shard; if that fails, no part of it remains.

        Args:
            number: Number of the shard, from 0; a single worker writes them in order.
            rows: Ids and texts.
            vectors: Embeddings, float32 [rows, hidden].
            flat: Rationales [rows x samples], those of a text next to each other; empty without rationales.
        """
        output = self.path(number)
        output.parent.mkdir(parents=True, exist_ok=True)
        if self._sharded:
            self._drop_others()
        samples = len(flat) // len(rows)
        written = [list(flat[row * samples : (row + 1) * samples]) for row in range(len(rows))]
        with atomic_path(output.with_suffix(".rationales.jsonl")) as path, path.open("w", encoding="utf-8") as file:
            for place, (row, row_rationales) in enumerate(zip(rows, written, strict=True)):
                record = {"row": place, "id": row.id, "text": row.text, "rationales": row_rationales}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        with atomic_path(output) as path:
            if output.suffix == ".npy":
                with path.open("wb") as binary:
                    np.save(binary, vectors)
            else:
                _write_parquet(path, rows, written, vectors)
        if self._sharded:
            self.done[number] = len(rows)
            if self._workers == 1:
                self._write_whole(next(number for number in count() if number not in self.done))
            else:
                own_sizes = {str(number): size for number, size in sorted(self.done.items()) if self.mine(number)}
                write_json_atomic(self._manifest, {"identity": self._identity, "rows": own_sizes})

    def finish(self, shards: int) -> int:
        """Write the manifest of the whole output if all its shards are complete, and return how many are missing.

        Then delete files of higher numbers, which a longer input or smaller shards left behind: a reader of all files
        would take them for a part of this output. If two workers end at the same time, both do this with the same
        result.
        """
        self.done = self._found()
        missing = shards - len(self.done.keys() & set(range(shards)))
        if not missing:
            self._write_whole(shards)
            for path in self._output.parent.glob(f"{glob.escape(self._output.stem)}-*{self._output.suffix}"):
                number = path.stem.removeprefix(f"{self._output.stem}-")
                if len(number) >= 5 and number.isdecimal() and int(number) >= shards:  # names made by `path`
                    path.unlink(missing_ok=True)
                    path.with_suffix(".rationales.jsonl").unlink(missing_ok=True)
        return missing

    def forget(self) -> None:
        """Mark this worker's shards as unfinished, so that the next run writes them again."""
        if self._sharded:
            self._manifest.unlink(missing_ok=True)

    def _write_whole(self, shards: int) -> None:
        rows = [self.done[number] for number in range(shards)]
        write_json_atomic(self._whole, {"identity": self._identity, "rows": rows})


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
            row_range = slice(start, start + _ROWS_AT_ONCE)
            flat = pa.array(vectors[row_range].ravel(), pa.float32())
            columns = [
                pa.array([row.id if counted else str(row.id) for row in rows[row_range]], schema.field("id").type),
                pa.array([row.text for row in rows[row_range]]),
                pa.array(rationales[row_range], schema.field("rationales").type),
                pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
            ]
            writer.write_batch(pa.record_batch(columns, schema))
