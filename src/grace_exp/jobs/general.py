"""General ability of the language model before and after training: benchmarks, and a probe that needs no hub."""

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from grace_exp.config.evaluation import GeneralConfig
from grace_exp.config.root import GraceConfig
from grace_exp.evaluation.general.compared_model import BASE, TRAINED, ComparedModel
from grace_exp.evaluation.general.general_results import GeneralResults, metrics, probe_table, task_table, write_general
from grace_exp.evaluation.general.harness import PreparedTasks, prepare_tasks, run_tasks
from grace_exp.evaluation.general.probe import ProbeResult, probe
from grace_exp.evaluation.general.texts import SOURCES, held_out_texts
from grace_exp.jobs.assemble import Assembled, assemble
from grace_exp.jobs.terminal import is_first_process
from grace_exp.policy.load_backbone import load_backbone
from grace_exp.tracking.wandb_logger import build_wandb_logger, finishing, stored_run_id
from grace_exp.training.resume import check_same_model, find_checkpoint, load_checkpoint


def prepare_general(config: GraceConfig) -> PreparedTasks:
    """Load the benchmarks' data before any model, because models may take long to load.

    Raises:
        ConfigError: There is no such task.
        MissingResourceError: Data is neither on this machine nor reachable.
    """
    return prepare_tasks(_general(config)) if _general(config).tasks else PreparedTasks({}, {})


def run_general(
    config: GraceConfig, tasks: PreparedTasks, device: torch.device, console: Console, provenance: Mapping[str, Any]
) -> dict[str, float]:
    """Measure, print the tables, write `<run_dir>/evaluation/general.{json,csv}`, and send the results to W&B.

    Args:
        config: The settings, with `evaluation.general`; with `job.resume` base and trained model, otherwise the base
            only.
        tasks: The result of `prepare_general`.
        device: Device of the models.
        console: Console for progress and tables.
        provenance: Provenance of the run, for W&B.

    Returns:
        See `evaluation.general.results.metrics`.

    Raises:
        MissingResourceError: There is no such checkpoint, or the model or a set cannot be loaded.
        ConfigError: The checkpoint is of another model.
    """
    general = _general(config)
    with _compared_models(config, device, console) as (assembled, models):
        tokenizer = assembled.backbone.tokenizer
        probed: dict[str, ProbeResult] = {}
        if general.probe_texts is not None:
            for name in SOURCES:
                console.print(f"reading {name}", highlight=False)
                probed[name] = probe(
                    held_out_texts(name, general.probe_texts),
                    models,
                    tokenizer,
                    batch_tokens=config.hardware.score_budget,
                    chunk=config.hardware.logprob_chunk_tokens,
                )
        figures = {}
        for name, compared in models.items() if tasks.loaded else ():
            console.print(f"lm-eval, {name} model: {', '.join(tasks.loaded)}", highlight=False)
            figures[name] = run_tasks(
                tasks,
                compared,
                tokenizer,
                general,
                bf16=config.hardware.precision == "bf16-mixed",
                template_kwargs=config.backbone.template_kwargs,
            )
    results = GeneralResults(figures, probed, tasks.skipped)
    found = metrics(results)
    if is_first_process():
        weights = {BASE: config.backbone.name, TRAINED: config.job.resume}
        write_general(
            Path(config.run_dir) / "evaluation",
            results,
            {"weights": {name: weights[name] for name in models}, "settings": asdict(general)},
        )
        if config.logger.wandb is not None:
            # A benchmark of the same job has started the W&B run already.
            logger = build_wandb_logger(config, provenance, resume_id=stored_run_id(Path(config.run_dir)))
            with finishing([logger]):
                logger.log_metrics(found, step=0)
    if figures or tasks.skipped:
        console.print(task_table(results))
    if probed:
        console.print(probe_table(results))
    return found


@contextmanager
def _compared_models(
    config: GraceConfig, device: torch.device, console: Console
) -> Iterator[tuple[Assembled, dict[str, ComparedModel]]]:
    """Yield the models: `base`, and with `job.resume` also `trained`, in evaluation mode.

    With adapters the base is the trained model without its adapters; otherwise the backbone is loaded a second time.
    """
    # No rationales are written, so no other engine is started.
    silent = replace(config, rollout=replace(config.rollout, engine="transformers"))
    assembled = assemble(silent, lambda step, rows: None)
    module = assembled.module
    with closing(module.engine):
        policy: Any = module.policy
        if config.job.resume is not None:
            path = find_checkpoint(config.job.resume)
            checkpoint = load_checkpoint(path)
            check_same_model(checkpoint["grace"]["config"], config)
            module.load_state_dict(checkpoint["state_dict"])
            console.print(f"weights of {path}", highlight=False, soft_wrap=True)
        policy.to(device).eval()
        policy_lm = policy.causal_lm
        if config.backbone.lora is not None:
            base = ComparedModel(policy_lm, policy.model.disable_adapter)
        elif config.job.resume is not None:
            again = load_backbone(
                config.backbone, cache_dir=Path(config.cache_dir), seed=config.seed, dtype=torch.float32
            )
            base = ComparedModel(again.model.to(device).eval())  # type: ignore[arg-type]  # torch's decorator hides the type
        else:
            base = ComparedModel(policy_lm)
        yield assembled, {BASE: base} | ({TRAINED: ComparedModel(policy_lm)} if config.job.resume is not None else {})


def _general(config: GraceConfig) -> GeneralConfig:
    assert config.evaluation.general is not None
    return config.evaluation.general
