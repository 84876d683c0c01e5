"""Embed the user's texts: read text, write vectors and rationales."""

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from grace_exp.config.compose import to_dict
from grace_exp.config.root import GraceConfig
from grace_exp.data.corpus_rows import CorpusRow, CorpusRows, InputChanged
from grace_exp.data.lines import QUOTED_TOO, RENAME
from grace_exp.encoder.center import pooling_of
from grace_exp.encoder.encoder import GraceEncoder
from grace_exp.encoder.progress_bar import progress_bar
from grace_exp.encoder.shards import Shards
from grace_exp.errors import ConfigError, DataError
from grace_exp.jobs.processes import processes
from grace_exp.jobs.run_encoder import build_encoder
from grace_exp.jobs.terminal import is_first_process, our_console
from grace_exp.tracking.provenance import write_provenance

REJECTS_FILE = "rejects.jsonl"
"""File in the run folder with rows of `job.input` that hold no text, under `data.on_bad_row=reject`."""


def embed(config: GraceConfig) -> dict[str, float]:
    """Read `job.input`, encode it, and write `job.output` with a JSONL file of ids, texts and rationales beside it.

    Returns:
        `embed/texts`, `embed/rejected` and `embed/seconds`.

    Raises:
        DataError: The input does not exist, a row of it holds no text, an id occurs twice, or it changes during the
            job.
        MissingResourceError: The model does not exist.
    """
    job = config.job
    assert job.output is not None  # checked by JobConfig
    with ExitStack() as stack:
        device = stack.enter_context(processes(config.hardware))
        console = our_console()
        rows, good, bad, digest = checked_rows(config)
        encoder = stack.enter_context(closing(build_encoder(config, device)))
        # Weights of a user's own model are bfloat16 already; those of a run are float32, as in training.
        bf16 = config.hardware.precision == "bf16-mixed" and job.model is None
        stack.enter_context(torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16))
        shards = Shards(
            Path(job.output).expanduser(),
            {**_identity(config, encoder), "input": digest, "shard_rows": job.shard_rows, "bf16": bf16},
            sharded=job.shard_rows is not None,
            share=job.share,
        )
        start = time.monotonic()
        try:
            embedded = _embed_shards(config, encoder, rows.as_checked(digest), good, shards)
        except InputChanged:
            shards.forget()  # some may hold other texts than the manifest says
            raise
        seconds = time.monotonic() - start
        encoder.engine.sleep()
        last = shards.path(max(shards.done, default=0))
        console.print(f"Embeddings: {last}", highlight=False, soft_wrap=True, markup=False)
        console.print(
            f"Rationales: {last.with_suffix('.rationales.jsonl')}", highlight=False, soft_wrap=True, markup=False
        )
        if job.shard_rows is not None and is_first_process():
            count = math.ceil(good / job.shard_rows)
            missing = shards.finish(count)
        if job.worker is not None and job.shard_rows is not None and is_first_process():
            there = f"{missing} of {count} files are not written yet" if missing else f"all {count} files are written"
            console.print(f"worker {job.worker}: {there}", highlight=False)
        console.print(f"{embedded / seconds:.1f} texts/s", highlight=False)
    return {"embed/texts": float(embedded), "embed/rejected": float(bad), "embed/seconds": seconds}


def checked_rows(config: GraceConfig) -> tuple[CorpusRows, int, int, str]:
    """Return the rows of `job.input`, their good and bad numbers, and a digest; write provenance, print the numbers.

    Raises:
        DataError: As `CorpusRows.check`.
    """
    job, console = config.job, our_console()
    assert job.input is not None  # checked by JobConfig
    rejects = Path(config.run_dir) / REJECTS_FILE
    reject = config.data.on_bad_row == "reject"
    rows = CorpusRows(job.input, job.column, job.id_column, reject, Path(config.cache_dir))
    try:
        good, bad, digest = rows.check(rejects if is_first_process() else None)
    except (ConfigError, DataError) as error:
        raise type(error)(_in_words_of_the_job(str(error))) from error
    write_provenance(Path(config.run_dir), to_dict(config), {"input": job.input, "digest": digest})
    console.print(f"{good} texts of {job.input}", highlight=False, soft_wrap=True, markup=False)
    if bad:
        console.print(f"{bad} rows rejected: {rejects}", highlight=False, soft_wrap=True, markup=False)
    return rows, good, bad, digest


def _identity(config: GraceConfig, encoder: GraceEncoder) -> dict[str, object]:
    """Return everything that decides the vectors of a text."""
    encode = {
        name: value for name, value in asdict(config.job.encode).items() if name not in ("batch_size", "cache_gib")
    }
    adaptive = (config.job.encode.mode or encoder.mode) == "adaptive"
    return {
        "model": encoder.fingerprint,
        "engine": type(encoder.engine).__name__,
        "prompt": asdict(encoder.prompt),
        "pooling": pooling_of(encoder.policy.pooling, encoder.center),
        "max_tokens": encoder.max_tokens,
        "encode": encode,
        "role": config.job.role,
        "seed": config.seed,
        **({"rule": asdict(encoder.rule)} if adaptive and encoder.rule is not None else {}),
    }


def _in_words_of_the_job(message: str) -> str:
    """Return a message about `data.sources.input` in terms of this job's settings."""
    for general, embed_setting in (
        (QUOTED_TOO, " (are fields quoted? then save it as .csv)"),
        (RENAME, "Another name can be given as job.column=..."),
        ("set data.sources.input.format", "rename it to one of these"),
        ("data.sources.input.path=", "job.input="),
        ("data.sources.input: ", "job.input: "),
        ("data.sources.input", "job.input"),
    ):
        message = message.replace(general, embed_setting)
    return message


def _embed_shards(
    config: GraceConfig, encoder: GraceEncoder, rows: Iterable[CorpusRow], good: int, shards: Shards
) -> int:
    """Encode and write shard by shard; every process takes part in each, and the first one writes.

    Returns:
        The number of texts in this worker's shards, including those that existed.
    """
    job = config.job
    world = dist.get_world_size() if dist.is_initialized() else 1
    done, embedded = _from_first(shards.done), 0
    visible = is_first_process() and config.callbacks.progress == "bar"
    with progress_bar(good, visible=visible) as advance:
        for number, texts in enumerate(_blocks(rows, job.shard_rows or good)):
            embedded += len(texts) * shards.mine(number)
            if not shards.mine(number) or done.get(number) == len(texts):
                advance(len(texts))
                continue
            told = 0

            def tell(more: int) -> None:
                nonlocal told
                step = min(more * world, len(texts) - told)  # noqa: B023 - called before the next shard
                told += step
                advance(step)

            vectors = np.asarray(
                encoder.encode(
                    [row.text for row in texts],
                    batch_size=job.encode.batch_size,
                    show_progress_bar=tell,
                    normalize_embeddings=job.encode.normalize,
                    truncate_dim=job.encode.truncate_dim,
                    mode=job.encode.mode,
                    role=job.role,
                    temperature=job.encode.temperature,
                    seed=config.seed,
                    samples=job.encode.samples,
                )
            )
            advance(len(texts) - told)  # equal texts are computed once, so fewer were counted
            if not np.isfinite(vectors).all():
                row = texts[int(np.argmin(np.isfinite(vectors).all(axis=1)))]
                raise DataError(f"the embedding of the text with id {row.id!r} is not finite; nothing of it is written")
            if is_first_process():
                shards.write(number, texts, vectors, encoder.rationales)
    return embedded


def _blocks(rows: Iterable[CorpusRow], size: int) -> Iterator[list[CorpusRow]]:
    iterator = iter(rows)
    while block := list(islice(iterator, size)):
        yield block


def _from_first(done: Mapping[int, int]) -> dict[int, int]:
    """Return the first process's shards: it may write while others still read."""
    if not dist.is_initialized():
        return dict(done)
    box = [dict(done)]
    dist.broadcast_object_list(box)
    return box[0]
