"""Measure a model on held-out sets, on a benchmark, in general ability, or in several of these."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from grace_exp.config.compose import to_dict
from grace_exp.config.root import GraceConfig
from grace_exp.encoder.encoder import GraceEncoder
from grace_exp.encoder.pretrained import exports_in
from grace_exp.evaluation.control_table import (
    ControlRow,
    adaptive_lines,
    control_figures,
    control_rows,
    control_table,
    controls_section,
    write_controls,
)
from grace_exp.evaluation.heldout import evaluate_minilm
from grace_exp.evaluation.scores import score
from grace_exp.jobs.assemble import Assembled, assemble
from grace_exp.jobs.processes import processes
from grace_exp.jobs.run_encoder import build_encoder, encoder_around, exports_of, say_what_differs
from grace_exp.jobs.terminal import is_first_process, our_console
from grace_exp.tracking.atomic import write_text_atomic
from grace_exp.tracking.provenance import machine_name, write_provenance
from grace_exp.training.callbacks.heldout_evaluation import heldout_results, write_results
from grace_exp.training.model_card import with_section
from grace_exp.training.resume import check_same_model, find_checkpoint, load_checkpoint
from grace_exp.training.run_summary import heldout_table


def evaluate(config: GraceConfig) -> dict[str, float]:
    """Print the results of held-out sets, benchmark and general ability, as far as the settings ask for them.

    Args:
        config: The settings. With `job.resume` the weights come from that checkpoint or run folder; otherwise the
            backbone is measured. A benchmark and the rows of `evaluation.controls` also take `job.model`.

    Returns:
        `val/<set>/{rationale,prompt_only}`, `controls/*`, `mteb/*` and `general/*`.

    Raises:
        MissingResourceError: There is no such checkpoint or model, or data is missing.
        ConfigError: The checkpoint is of another model, or a task does not exist.
    """
    if config.evaluation.benchmark is not None:
        from grace_exp.jobs.benchmark import check_benchmark, run_benchmark

        check_benchmark(config)
    if config.evaluation.general is not None:
        from grace_exp.jobs.general import prepare_general, run_general

        tasks = prepare_general(config)
    figures: dict[str, float] = {}
    with processes(config.hardware) as device:
        console = our_console()
        record = write_provenance(Path(config.run_dir), to_dict(config), {})
        if config.evaluation.sets and config.job.model is not None:
            figures |= _controls_of_model(config, device, console)
        elif config.evaluation.sets:
            figures |= _heldout(config, device, console)
        if config.evaluation.benchmark is not None:
            figures |= run_benchmark(config, device, console, record)
        if config.evaluation.general is not None:
            figures |= run_general(config, tasks, device, console, record)
        console.print(f"Run folder: {config.run_dir}", highlight=False, soft_wrap=True)
    return figures


def _heldout(config: GraceConfig, device: torch.device, console: Console) -> dict[str, float]:
    """Return the results of the held-out sets, and write them to `<run_dir>/evaluation/now.json`."""
    assembled = assemble(config, lambda step, rows: None)
    module = assembled.module
    if config.job.resume is not None:
        path = find_checkpoint(config.job.resume)
        checkpoint = load_checkpoint(path)
        check_same_model(checkpoint["grace"]["config"], config)
        say_what_differs(checkpoint["grace"]["config"], config)
        module.load_state_dict(checkpoint["state_dict"])
        console.print(f"weights of {path}", highlight=False, soft_wrap=True)
    module.to(device)
    bf16 = config.hardware.precision == "bf16-mixed"
    with closing(module.engine), torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
        results = heldout_results(config, module, assembled.decode)
        controls = _controls_of_checkpoint(config, assembled, console) if config.evaluation.controls else {}
    write_results(Path(config.run_dir) / "evaluation" / "now.json", results, config)
    minilm = evaluate_minilm(config.evaluation) if config.evaluation.minilm else {}
    resamples = config.evaluation.bootstrap
    rows = {
        name: {
            "rationale": str(score(result.rationale, resamples)),
            "prompt_only": str(score(result.prompt_only, resamples)),
            **({"minilm": str(score(minilm[name], resamples))} if name in minilm else {}),
        }
        for name, result in results.items()
    }
    console.print(heldout_table(config, rows))
    return controls | {
        f"val/{name}/{row}": items.figure()
        for name, result in results.items()
        for row, items in (("rationale", result.rationale), ("prompt_only", result.prompt_only))
    }


def _controls_of_model(config: GraceConfig, device: torch.device, console: Console) -> dict[str, float]:
    """Return the results of modes and control rationales of `job.model`, with its own prompt, pooling and limits."""
    encode = replace(config.job.encode, cache_gib=0)  # without a cache times are the model's
    encoder = build_encoder(replace(config, job=replace(config.job, encode=encode)), device)
    with closing(encoder):
        folder = Path(str(config.job.model)).expanduser()
        return _controls(config, encoder, exports_in(folder) if folder.is_dir() else [], console)


CONTROLS_TITLE = "Modes and control rationales"
"""Title of the section in model cards."""


def _into_cards(exports: Sequence[Path], rows: Sequence[ControlRow], resamples: int, console: Console) -> None:
    """Write the table into the README of every export of these weights."""
    lines = controls_section(rows, resamples, machine_name())
    for card in (folder / "README.md" for folder in exports):
        if card.is_file():
            write_text_atomic(card, with_section(card.read_text(encoding="utf-8"), CONTROLS_TITLE, lines))
            console.print(f"Model card: {card}", highlight=False, soft_wrap=True, markup=False)


def _controls_of_checkpoint(config: GraceConfig, assembled: Assembled, console: Console) -> dict[str, float]:
    budget = config.evaluation.max_tokens or config.rollout.max_tokens  # as in `heldout_results`
    encoder = encoder_around(assembled, config, max_tokens=budget, cache=None)  # without a cache times are the model's
    exports = exports_of(config.job.resume) if is_first_process() and config.job.resume is not None else []
    return _controls(config, encoder, exports, console)


def _controls(
    config: GraceConfig, encoder: GraceEncoder, exports: Sequence[Path], console: Console
) -> dict[str, float]:
    """Return the results of modes and control rationales.

    They are also written to `<run_dir>/evaluation/controls.{csv,json}`, and into the cards of the exports.
    """
    rows = control_rows(
        encoder,
        config.evaluation,
        seed=config.seed,
        batch_size=config.job.encode.batch_size,
        announce=lambda line: console.print(line, highlight=False),
    )
    resamples = config.evaluation.bootstrap
    if is_first_process():
        about = {"model": encoder.name, "max_tokens": encoder.max_tokens, "seed": config.seed}
        write_controls(Path(config.run_dir) / "evaluation", rows, resamples, about)
    console.print(control_table(rows, resamples))
    if is_first_process():
        _into_cards(exports, rows, resamples, console)
    for line in adaptive_lines(rows, resamples):
        console.print(line, highlight=False, soft_wrap=True)
    return control_figures(rows)
