"""Measure an encoder on a benchmark: MTEB's result files, a table, a CSV file, W&B."""

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.text import Text

from grace_exp.config.compose import to_dict
from grace_exp.config.evaluation import BenchmarkConfig
from grace_exp.config.root import GraceConfig
from grace_exp.encoder.encoder import GraceEncoder
from grace_exp.encoder.pretrained import resolve
from grace_exp.errors import ConfigError
from grace_exp.evaluation.heldout import MINILM_REQUIREMENT, minilm_folder
from grace_exp.evaluation.mteb.adapter import MtebEncoder
from grace_exp.evaluation.mteb.items import write_items
from grace_exp.evaluation.mteb.mteb_results import CATEGORIES, TaskScore, category_table, figures, write_csv
from grace_exp.evaluation.mteb.paper_figures import PaperRow, paper_row, paper_row_of_folder, paper_row_of_run
from grace_exp.evaluation.mteb.run import evaluate_tasks
from grace_exp.evaluation.mteb.suites import check_available, single_tasks, suite_tasks
from grace_exp.jobs.run_encoder import build_encoder
from grace_exp.jobs.terminal import is_first_process
from grace_exp.tracking.wandb_logger import build_wandb_logger, finishing


def check_benchmark(config: GraceConfig) -> None:
    """Check, before anything loads, that the benchmark's data is available and its settings fit its tasks.

    Raises:
        ConfigError: A task or a prompt's name does not exist.
        MissingResourceError: The data of a task is neither on this machine nor reachable.
    """
    benchmark = _benchmark(config)
    tasks = suite_tasks(benchmark, Path(config.cache_dir))
    names = {task.metadata.name for task in single_tasks(tasks)} | {task.metadata.type for task in single_tasks(tasks)}
    for name in benchmark.prompts:
        what = name.removesuffix("-query").removesuffix("-document")
        if name not in ("query", "document") and what not in names | CATEGORIES.keys():
            raise ConfigError(
                f"evaluation.benchmark.prompts has {name!r}: allowed are query, document, and, alone or with -query or "
                f"-document behind, {', '.join(CATEGORIES)} and the suite's tasks"
            )
    check_available(tasks, Path(config.cache_dir))


def run_benchmark(
    config: GraceConfig, device: torch.device, console: Console, provenance: Mapping[str, Any]
) -> dict[str, float]:
    """Evaluate, print the table, and send the results to W&B.

    Writes `<suite>.csv` and `<suite>_items.json`, the model's scores item by item, to `<run_dir>/evaluation/`.

    Args:
        config: The settings, with `evaluation.benchmark`; the model is that of `build_encoder`.
        device: Device of the model.
        console: Console for progress and table.
        provenance: Provenance of the run, for W&B.

    Returns:
        `mteb/<task>`, `mteb/category/<category>` and `mteb/<average>` of the model.
    """
    # Weights of a user's own model are bfloat16 already; those of a run are float32, as in training.
    bf16 = config.hardware.precision == "bf16-mixed" and config.job.model is None
    with (
        closing(build_encoder(config, device)) as encoder,
        torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16),
    ):
        scores = _scores(config, encoder, console)
    found = figures(next(iter(scores.values())))
    suite = _benchmark(config).title
    if is_first_process():
        folder = Path(config.run_dir) / "evaluation"
        write_csv(folder / f"{suite}.csv", scores, config.evaluation.bootstrap)
        items = {score.task: score.items for score in next(iter(scores.values())) if score.items is not None}
        write_items(folder / f"{suite}_items.json", items)
        if config.logger.wandb is not None:
            logger = build_wandb_logger(config, provenance)
            with finishing([logger]):
                logger.log_metrics(found, step=0)
    paper = _paper_row(config)
    console.print(category_table(suite, scores, None if paper is None else paper.figures))
    if paper is not None:
        console.print(f"paper: {paper.title}", highlight=False, soft_wrap=True)
    console.print(f"MTEB result files: {_results_dir(config) / 'results'}", highlight=False, soft_wrap=True)
    return found


def _scores(config: GraceConfig, encoder: GraceEncoder, console: Console) -> dict[str, list[TaskScore]]:
    """Return the scores of the encoder and, if asked for, of all-MiniLM, by name."""
    benchmark = _benchmark(config)
    encoder.prompts.update(benchmark.prompts)
    encode = config.job.encode
    models = [
        MtebEncoder.of_grace(
            encoder,
            mode=encode.mode or encoder.mode,
            temperature=encode.temperature,
            seed=config.seed if encode.temperature > 0 else 0,  # greedy results do not depend on the seed
            samples=encode.samples,
            truncate_dim=encode.truncate_dim,
        ),
        *([minilm()] if config.evaluation.minilm else []),
    ]
    scores: dict[str, list[TaskScore]] = {}
    for model in models:
        name = str(model.mteb_model_meta.name).partition("/")[2]
        console.print(Text.assemble((benchmark.title, "bold"), f": {name}"), highlight=False)
        scores[name] = evaluate_tasks(
            model,
            # Loaded again for every model, because tasks draw from generators that keep their state.
            suite_tasks(benchmark, Path(config.cache_dir)),
            _results_dir(config),
            batch_size=encode.batch_size,
            announce=lambda line: console.print(f"  {line}", highlight=False),
            show_progress_bar=console.is_terminal and is_first_process(),
        )
    return scores


def minilm() -> MtebEncoder:
    """Return all-MiniLM-L6-v2 from its package, for comparison; `check_machine` has found the package."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(minilm_folder(), device="cpu")
    revision = MINILM_REQUIREMENT.replace("==", "-")
    return MtebEncoder.of_sentence_transformer(model, name="sentence-transformers/all-MiniLM-L6-v2", revision=revision)


def _paper_row(config: GraceConfig) -> PaperRow | None:
    """Return the paper's row of this model, on the paper's benchmark."""
    job = config.job
    if _benchmark(config).suite != "mteb_en_v1":
        return None
    if job.model is not None and Path(job.model).expanduser().is_dir():
        return paper_row_of_folder(Path(job.model).expanduser())
    if job.resume is not None:
        return paper_row_of_run(to_dict(config))
    backbone = config.backbone.path if job.model is None else resolve(job.model).backbone.path
    prompt_only = job.encode.mode == "prompt_only" or (job.encode.mode is None and config.method.prompt_only)
    return paper_row(str(backbone), "base" if prompt_only else "reasoning", "supervised")


def _results_dir(config: GraceConfig) -> Path:
    return Path(config.cache_dir) / "mteb"


def _benchmark(config: GraceConfig) -> BenchmarkConfig:
    assert config.evaluation.benchmark is not None
    return config.evaluation.benchmark
