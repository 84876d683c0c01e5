"""Embed texts of the user's own: text in, vectors and rationales out."""

import json
import time
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from grace_exp.config.compose import to_dict
from grace_exp.config.data import DataConfig, SourceConfig
from grace_exp.config.root import GraceConfig
from grace_exp.data.lines import QUOTED_TOO, RENAME
from grace_exp.data.sources import load_source
from grace_exp.errors import ConfigError, DataError
from grace_exp.jobs.processes import processes
from grace_exp.jobs.run_encoder import build_encoder
from grace_exp.jobs.terminal import is_first_process, our_console
from grace_exp.tracking.atomic import atomic_path
from grace_exp.tracking.provenance import write_provenance

_ROWS_AT_ONCE = 1000


def embed(config: GraceConfig) -> dict[str, float]:
    """Read `job.input`, encode it, and write `job.output` with a JSONL file of rationales beside it.

    Returns:
        `embed/texts` and `embed/seconds`.

    Raises:
        DataError: The input is not there, or a row of it holds no text.
        MissingResourceError: The model is not there.
    """
    job, output, rationales = config.job, *_outputs(config)
    with ExitStack() as stack:
        device = stack.enter_context(processes(config.hardware))
        console = our_console()
        texts = _texts(config)
        console.print(f"{len(texts)} texts of {job.input}", highlight=False, soft_wrap=True)
        encoder = stack.enter_context(closing(build_encoder(config, device)))
        # Weights that a model of the user's own brings are bfloat16 already; a run's are float32, as in training.
        bf16 = config.hardware.precision == "bf16-mixed" and job.model is None
        stack.enter_context(torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16))
        start = time.monotonic()
        vectors = np.asarray(
            encoder.encode(
                texts,
                batch_size=job.encode.batch_size,
                show_progress_bar=is_first_process() and config.callbacks.progress == "bar",
                normalize_embeddings=job.encode.normalize,
                truncate_dim=job.encode.truncate_dim,
                mode=job.encode.mode,
                role=job.role,
                temperature=job.encode.temperature,
                seed=config.seed,
                samples=job.encode.samples,
            )
        )
        seconds = time.monotonic() - start
        encoder.engine.sleep()
        if is_first_process():
            _write(output, rationales, texts, vectors, encoder.rationales)
        console.print(f"Embeddings: {output} {list(vectors.shape)}", highlight=False, soft_wrap=True)
        console.print(f"Rationales: {rationales}", highlight=False, soft_wrap=True)
    return {"embed/texts": float(len(texts)), "embed/seconds": seconds}


def _outputs(config: GraceConfig) -> tuple[Path, Path]:
    """Where embeddings and rationales go."""
    assert config.job.output is not None  # checked by JobConfig
    output = Path(config.job.output).expanduser()
    return output, output.with_suffix(".rationales.jsonl")


def _texts(config: GraceConfig) -> list[str]:
    """The texts of the input, checked row by row."""
    assert config.job.input is not None  # checked by JobConfig
    source = SourceConfig(path=config.job.input, text=config.job.column)
    data = DataConfig(name="embed", mode="unsupervised", sources={"input": source})
    try:
        loaded = load_source("input", source, data, None, Path(config.cache_dir))
    except (ConfigError, DataError) as error:
        raise type(error)(_in_words_of_the_job(str(error))) from error
    write_provenance(Path(config.run_dir), to_dict(config), {"input": config.job.input, "digest": loaded.digest})
    return list(loaded.rows["text"])


def _in_words_of_the_job(message: str) -> str:
    """A message about `data.sources.input` with this job's own settings; rows cannot be left out of it."""
    for general, own in (
        (", or set data.on_bad_row=reject to list such rows in rejects.jsonl and go on", ""),
        (QUOTED_TOO, " (are fields quoted? then save it as .csv)"),
        (RENAME, "Another name can be given as job.column=..."),
        ("set data.sources.input.format", "rename it to one of these"),
        ("data.sources.input.path=", "job.input="),
        ("data.sources.input: ", "job.input: "),
        ("data.sources.input", "job.input"),
    ):
        message = message.replace(general, own)
    return message


def _write(output: Path, rationales: Path, texts: list[str], vectors: NDArray[np.float32], flat: list[str]) -> None:
    samples = len(flat) // len(texts)  # 0 without rationales
    written = [flat[row * samples : (row + 1) * samples] for row in range(len(texts))]
    with atomic_path(rationales) as path, path.open("w", encoding="utf-8") as file:
        for row, (text, some) in enumerate(zip(texts, written, strict=True)):
            file.write(json.dumps({"row": row, "text": text, "rationales": some}, ensure_ascii=False) + "\n")
    with atomic_path(output) as path:
        if output.suffix == ".npy":
            with path.open("wb") as file:
                np.save(file, vectors)
        else:
            _write_parquet(path, texts, written, vectors)


def _write_parquet(path: Path, texts: list[str], rationales: list[list[str]], vectors: NDArray[np.float32]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        {
            "text": pa.string(),
            "rationales": pa.list_(pa.string()),
            "embedding": pa.list_(pa.float32(), vectors.shape[1]),
        }
    )
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, len(texts), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            flat = pa.array(vectors[rows].ravel(), pa.float32())
            columns = [
                pa.array(texts[rows]),
                pa.array(rationales[rows], schema.field("rationales").type),
                pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
            ]
            writer.write_batch(pa.record_batch(columns, schema))
