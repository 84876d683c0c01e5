"""Pairs (query, positive) as a job's input."""

from collections.abc import Sequence
from pathlib import Path

from grace_exp.config.compose import to_dict
from grace_exp.config.data import DataConfig, SourceConfig
from grace_exp.config.root import GraceConfig
from grace_exp.data.rows import RejectLog
from grace_exp.data.sources import load_source
from grace_exp.jobs.terminal import our_console
from grace_exp.tracking.provenance import write_provenance


def read_pairs(config: GraceConfig) -> tuple[Sequence[str], Sequence[str]]:
    """Return the queries and positives of `job.input`, row by row; write provenance, and print their number.

    Raises:
        DataError: The input does not exist, or a row lacks a text.
    """
    job = config.job
    assert job.input is not None  # checked by JobConfig
    source = SourceConfig(path=job.input, negative=None)
    recipe = DataConfig(
        name="pairs",
        mode="supervised",
        negatives=0,
        sources={"input": source},
        on_bad_row=config.data.on_bad_row,
    )
    rejects = RejectLog(Path(config.run_dir) / "rejects.jsonl")
    loaded = load_source("input", source, recipe, rejects, Path(config.cache_dir))
    write_provenance(Path(config.run_dir), to_dict(config), {"input": job.input, "digest": loaded.digest})
    queries, positives = list(loaded.rows["query"]), list(loaded.rows["positive"])
    our_console().print(f"{len(queries)} pairs of {job.input}", highlight=False, soft_wrap=True, markup=False)
    return queries, positives
