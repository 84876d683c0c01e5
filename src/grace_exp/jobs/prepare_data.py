"""Read a recipe, check every row, and describe it, without training."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from grace_exp.config.compose import to_dict
from grace_exp.config.filters import PRESETS, FiltersConfig
from grace_exp.config.root import GraceConfig
from grace_exp.data.cleaning import clean
from grace_exp.data.description import describe_source, rejected_by_reason
from grace_exp.data.recipes import Recipe, load_sources, refuse_leaks
from grace_exp.data.sources import LoadedSource
from grace_exp.data.token_lengths import TokenLengths
from grace_exp.errors import MissingResourceError
from grace_exp.jobs.recipe import evaluation_texts, length_counter
from grace_exp.jobs.terminal import is_first_process, our_console
from grace_exp.review.data_page import PAGE_FILE, print_description, write_page
from grace_exp.tracking.provenance import write_provenance
from grace_exp.tracking.summary import write_json_atomic

JSON_FILE = "data_report.json"
"""File in the run folder with the same figures as the page."""


def prepare_data(config: GraceConfig) -> dict[str, float]:
    """Prepare and describe the data; the prepared rows stay in the cache for training.

    Writes `<run_dir>/data_report.html` and `data_report.json`. A benchmark's data in package registries is downloaded
    into the cache as well.

    Returns:
        `rows`: the number of instances that training would see.

    Raises:
        DataError: As in training.
        MissingResourceError: The tokenizer, or the benchmark's data, is neither on this machine nor reachable.
    """
    console, run_dir = our_console(), Path(config.run_dir)
    rejects = run_dir / "rejects.jsonl"
    with console.status("reading the sources"):
        sources = load_sources(config.data, cache_dir=Path(config.cache_dir), rejects_path=rejects)
    lengths = _token_lengths(config, sources, console)
    with console.status("comparing with the evaluation's texts"):
        heldout = evaluation_texts(config) if config.evaluation.sets or config.evaluation.benchmark else None
        if config.data.leaks == "refuse" and heldout is not None:
            refuse_leaks(sources, heldout)
    with console.status("looking for duplicates"):
        dropping = heldout if config.data.leaks == "drop" else None
        cleaned = clean(sources, config.data.effective_filters, lengths=lengths, heldout=dropping)
        standard = clean(sources, _standard(lengths is not None), lengths=lengths)
    recipe = Recipe(config.data, {name: found.source for name, found in cleaned.items()}, seed=config.seed)
    description: dict[str, Any] = {
        "instances": len(recipe),
        "fingerprint": recipe.fingerprint,
        "evaluation": {"name": config.evaluation.name, "sets": list(heldout.names) if heldout is not None else []},
        "settings": asdict(config.data),
        "rejected_by_reason": rejected_by_reason(rejects),
        "sources": {
            name: describe_source(
                source, cleaned[name], standard[name], lengths(source) if lengths is not None else None, heldout
            )
            for name, source in sources.items()
        },
    }
    recipe.schedule(config.job.batch_size, config.job.steps)  # raises if a source is too small for its share
    if is_first_process():
        write_provenance(run_dir, to_dict(config), recipe.describe())
        write_json_atomic(run_dir / JSON_FILE, description)
        write_page(run_dir / PAGE_FILE, description)
    print_description(console, description)
    console.print(f"Report: {run_dir / PAGE_FILE}", highlight=False, soft_wrap=True, markup=False)
    if rejects.is_file():
        console.print(f"Rejected rows: {rejects}", highlight=False, soft_wrap=True, markup=False)
    if config.evaluation.benchmark is not None:
        from grace_exp.jobs.benchmark import check_benchmark

        check_benchmark(config)
        console.print(f"The data of evaluation={config.evaluation.name} is available", highlight=False)
    return {"rows": float(len(recipe))}


def _standard(with_lengths: bool) -> FiltersConfig:
    """Return the filters of `data.clean=standard`, as far as they can be applied."""
    preset = PRESETS["standard"] | ({} if with_lengths else {"uncut": ()})
    return FiltersConfig(**preset)  # type: ignore[arg-type]  # each preset has the field's type


def _token_lengths(
    config: GraceConfig, sources: dict[str, LoadedSource], console: Console
) -> Callable[[LoadedSource], TokenLengths] | None:
    """Return a counter of the texts' tokens; None if the tokenizer is not on this machine and no filter needs it."""
    with _progress(sum(len(source.rows) for source in sources.values()), console) as advance:
        try:
            counter = length_counter(config, advance)
        except MissingResourceError as error:
            if config.data.effective_filters.needs_tokens:
                raise
            console.print(f"Tokens are not counted: {error}", highlight=False, soft_wrap=True, markup=False)
            return None
        for source in sources.values():
            counter(source)
    return counter


@contextmanager
def _progress(rows: int, console: Console) -> Iterator[Callable[[int], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("counting tokens, rows"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=rows)
        yield lambda done: progress.advance(task, done)
