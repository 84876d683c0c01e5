"""Train a policy: the main job."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from grace_exp.config.advice import override
from grace_exp.config.compose import to_dict
from grace_exp.config.root import GraceConfig
from grace_exp.data.datamodule import GraceDataModule
from grace_exp.errors import EngineFailed
from grace_exp.jobs.assemble import assemble
from grace_exp.jobs.plan import verdict, write_plan
from grace_exp.jobs.recipe import configured_recipe
from grace_exp.jobs.run_end import Trained, finish, is_ended, read_summary, reopen
from grace_exp.jobs.terminal import is_first_process, machine_output, our_console
from grace_exp.jobs.train_report import reporting
from grace_exp.objective.own_objective import try_custom_objective
from grace_exp.policy.model_checks import BackboneWarning
from grace_exp.policy.sharding import make_whole
from grace_exp.reward.terms.own_term import try_custom_term
from grace_exp.tracking.metrics_csv import MetricsCsv
from grace_exp.tracking.own_sources import record_own_parts
from grace_exp.tracking.provenance import write_provenance
from grace_exp.tracking.result import read_result
from grace_exp.tracking.run_warnings import RunWarnings, collected
from grace_exp.tracking.samples import (
    EVOLUTION_COLUMNS,
    EVOLUTION_FOLDER,
    EVOLUTION_TABLE,
    SAMPLES_FOLDER,
    SamplesTable,
)
from grace_exp.tracking.wandb_logger import build_wandb_logger, finishing, stored_run_id
from grace_exp.tracking.wandb_results import log_config, log_evaluation, log_export, set_summary
from grace_exp.training.callbacks.children import wait_for_children
from grace_exp.training.callbacks.evolution import Evolution
from grace_exp.training.callbacks.heldout_evaluation import HeldoutEvaluation, stored_results
from grace_exp.training.callbacks.inert_terms import InertTermsWarning
from grace_exp.training.callbacks.json_lines import JsonLines
from grace_exp.training.callbacks.mismatch_warning import MismatchWarning
from grace_exp.training.callbacks.progress import ProgressDisplay
from grace_exp.training.callbacks.skipped_updates import SkippedUpdatesWarning
from grace_exp.training.callbacks.watchdog import Watchdog
from grace_exp.training.checkpoints import GracefulStop, StepCheckpoints, drop_checkpoints_after
from grace_exp.training.export import check_exportable, export_folder
from grace_exp.training.resume import check_new, continued
from grace_exp.training.run_summary import final_figures, print_report
from grace_exp.training.trainer import build_trainer

if TYPE_CHECKING:
    import wandb


def train(config: GraceConfig) -> dict[str, float]:
    """Train, measure held-out sets before and after, export, and write the summary.

    Args:
        config: The checked settings. With `job.resume` the run continues in its own folder. If its steps are done, only
            its end is done; if it has ended, its report is shown.

    Returns:
        The results that a sweep may optimise: final reward and held-out results.

    Raises:
        Interrupted: A signal ended the run early; its state is in a checkpoint.
    """
    console = our_console(stderr=config.callbacks.progress == "json")
    checkpoint_file, completed = None, 0
    if config.job.resume is not None:
        config, checkpoint_file, completed = continued(config)
    run_dir = Path(config.run_dir)
    if completed == config.job.steps and is_ended(config):
        return _show(config, console)
    run_dir.mkdir(parents=True, exist_ok=True)
    if checkpoint_file is None:
        check_new(run_dir)
    if completed < config.job.steps and is_first_process():
        reopen(run_dir)
    if config.reward.terms.custom is not None:
        try_custom_term(config.reward.terms.custom)
    if config.objective.custom is not None:
        try_custom_objective(config.objective, config.rollout.max_tokens)
    recipe = configured_recipe(config, run_dir / "rejects.jsonl" if is_first_process() else None)
    datamodule = GraceDataModule(  # before the model loads, because this checks that there are enough rows
        recipe,
        batch_size=config.job.batch_size,
        mini_batch_size=config.objective.mini_batch_size,
        steps=config.job.steps,
    )
    record = write_provenance(run_dir, to_dict(config), recipe.describe())
    record_own_parts(run_dir, config)
    console.print(Text.assemble((config.name, "bold"), f"  run folder {run_dir}"), highlight=False, soft_wrap=True)
    if completed == config.job.steps:
        console.print(f"all {completed} steps are done: finishing what comes after them", highlight=False)
    elif config.job.resume is not None:
        console.print(f"continuing after step {completed} of {config.job.steps}", highlight=False)

    csv, samples = MetricsCsv(run_dir / "metrics.csv"), SamplesTable(run_dir / SAMPLES_FOLDER)
    evolution = SamplesTable(run_dir / EVOLUTION_FOLDER, EVOLUTION_TABLE, EVOLUTION_COLUMNS)
    resume_id = stored_run_id(run_dir) if checkpoint_file is not None else None
    wandb_logger = build_wandb_logger(config, record, resume_id=resume_id) if config.logger.wandb else None
    loggers = [csv, *([wandb_logger] if wandb_logger else [])]
    with finishing(loggers):
        console.print(f"loading {config.backbone.name}", highlight=False)
        run = wandb_logger.experiment if wandb_logger and is_first_process() else None
        with collected(BackboneWarning) as of_backbone:
            assembled = assemble(config, lambda step, rows: samples.log(step, rows, run))
        module = assembled.module
        if config.callbacks.export and is_first_process():
            check_exportable(assembled.backbone)
        if assembled.plan is not None and is_first_process():
            write_plan(config, assembled.plan)
            console.print(f"the plan {verdict(assembled.plan)}", highlight=False, markup=False, soft_wrap=True)
        announce = partial(console.print, highlight=False)
        if run is not None:
            log_config(run, run_dir)
        warnings = RunWarnings(run_dir, partial(console.print, highlight=False, markup=False), run)
        watchdog = Watchdog(config, warnings.add) if config.callbacks.watchdog is not None else None
        lines = JsonLines(config, machine_output()) if config.callbacks.progress == "json" else None
        if lines is not None:
            warnings.listeners.append(partial(lines.write, "warning"))
        stop = GracefulStop(run_dir, config.job.steps, announce)
        heldout = HeldoutEvaluation(config, assembled.decode, announce)
        checkpoints = StepCheckpoints(config.callbacks.checkpoint, run_dir, config.job.steps)
        callbacks = [
            heldout,  # before `stop` catches signals: Ctrl-C ends an evaluation at once
            stop,
            *([watchdog] if watchdog else []),
            checkpoints,
            InertTermsWarning(config, warnings.add),
            MismatchWarning(config, warnings.add),
            SkippedUpdatesWarning(warnings.add),
            Evolution(config, partial(_log_evolution, evolution, run)),
            *(
                [ProgressDisplay(config.job.steps, live=config.callbacks.progress == "bar", console=console)]
                if config.callbacks.progress in ("bar", "lines")
                else []
            ),
            *([lines] if lines else []),
        ]
        trainer = build_trainer(config.hardware, steps=config.job.steps, loggers=loggers, callbacks=callbacks)
        # Steps after the checkpoint are made again.
        csv.truncate(completed)
        samples.truncate(completed)
        evolution.truncate(completed + 1)  # its steps count the steps done
        warnings.truncate(completed)
        for message in of_backbone if checkpoint_file is None else []:
            warnings.add(0, "backbone", message)
        drop_checkpoints_after(run_dir, completed)
        with reporting(config, console):
            with closing(module.engine), _way_on(run_dir):
                trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint_file, weights_only=True)
            if module.policy.sharded and not stop.stopped and config.callbacks.export:
                make_whole(assembled.backbone.model)
            if trainer.is_global_zero:
                stop.raise_if_interrupted()
                if watchdog is not None:
                    watchdog.raise_if_collapsed()
                finish(Trained(config, assembled.backbone, module, heldout, recipe.describe()))
                if run is not None:
                    log_evaluation(run, run_dir)
                    set_summary(run, read_summary(run_dir)["heldout"])
                    if config.logger.wandb is not None and config.logger.wandb.upload_export:
                        folders = [export_folder(config, kind) for kind in sorted(config.callbacks.export)]
                        log_export(run, folders, checkpoints.better_than_last())
                _report(config, console)
                wait_for_children(trainer.strategy.launcher)
        figures = final_figures(module, heldout.results)
        if lines is not None:
            lines.write("end", figures={name: value for name, value in figures.items() if name != "step"})
        return figures


@contextmanager
def _way_on(run_dir: Path) -> Iterator[None]:
    """Add the command that continues the run to the error of an engine that has died."""
    try:
        yield
    except EngineFailed as error:
        way_on = f"The run continues with the same command and {override('job.resume', run_dir)}"
        raise EngineFailed(f"{error}\n{way_on}") from error


def _log_evolution(table: SamplesTable, run: "wandb.Run | None", done: int, rows: list[dict[str, object]]) -> None:
    table.log(done, rows, run, wandb_step=max(0, done - 1))  # the step that the weights come from


def _show(config: GraceConfig, console: Console) -> dict[str, float]:
    """Show the report of a run that has ended, and return its results."""
    console.print(f"{config.run_dir}: this run has ended; this is its report", highlight=False, soft_wrap=True)
    _report(config, console)
    figures = read_result(Path(config.run_dir)) or {}
    return {name: value for name, value in figures.items() if value is not None}


def _report(config: GraceConfig, console: Console) -> None:
    folders = [export_folder(config, kind) for kind in sorted(config.callbacks.export)]
    print_report(console, config, read_summary(Path(config.run_dir)), stored_results(config), folders)
