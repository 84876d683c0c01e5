"""What a run reports at its end: summary.json, and a page on the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from grace_exp.config.advice import override, this_command
from grace_exp.config.root import GraceConfig
from grace_exp.evaluation.heldout import SetResult
from grace_exp.evaluation.scores import ItemScores, Score, rise, score
from grace_exp.tracking.summary import peak_memory_gib, write_json_atomic
from grace_exp.training.callbacks.heldout_evaluation import Moment
from grace_exp.training.module import StepModule

SUMMARY_FILE = "summary.json"

Results = Mapping[Moment, Mapping[str, SetResult]]
"""Held-out results by moment and set."""

_KINDS = {"sts": "Spearman x 100", "retrieval": "nDCG@10 x 100"}


def write_summary(
    config: GraceConfig,
    module: StepModule,
    heldout: Results,
    minilm: Mapping[str, ItemScores],
    data: Mapping[str, Any],
) -> dict[str, Any]:
    """Write `<run_dir>/summary.json` and return it.

    Keys: `reward_per_step` (empty without a reward), `loss_per_step`, `heldout` (per set: before, after, rise,
    prompt_only_before, prompt_only_after, minilm, each with a 95 % interval), `seconds` per phase, `peak_memory_gib`,
    `table` (the same results as text), `latency` (per set: tokens_per_text, ms_per_text, machine), and what identifies
    the run.
    """
    sets = {name: _figures(name, config, heldout, minilm) for name in config.evaluation.sets}
    seconds = module.timer.totals()
    summary = {
        "name": config.name,
        "seed": config.seed,
        "steps": module.completed_steps,
        "skipped_updates": module.skipped_updates,
        "data": dict(data),
        "reward_per_step": [row["reward/total/mean"] for row in module.history if "reward/total/mean" in row],
        "loss_per_step": [row["train/loss"] for row in module.history],
        "in_batch_accuracy_per_step": [row.get("embed/in_batch_accuracy") for row in module.history],
        "heldout": {name: {k: v.as_dict() for k, v in figures.items()} for name, figures in sets.items()},
        "table": {name: {k: str(v) for k, v in figures.items()} for name, figures in sets.items()},
        "latency": {name: _latency(result) for name, result in heldout.get("after", {}).items()},
        "seconds": seconds,
        "peak_memory_gib": peak_memory_gib(),
    }
    write_json_atomic(Path(config.run_dir) / SUMMARY_FILE, summary)
    return summary


def _figures(name: str, config: GraceConfig, heldout: Results, minilm: Mapping[str, ItemScores]) -> dict[str, Score]:
    resamples = config.evaluation.bootstrap
    figures: dict[str, Score] = {}
    for moment, results in heldout.items():
        figures[moment] = score(results[name].rationale, resamples)
        figures[f"prompt_only_{moment}"] = score(results[name].prompt_only, resamples)
    if {"before", "after"} <= heldout.keys():
        before, after = heldout["before"][name], heldout["after"][name]
        figures["rise"] = rise(before.rationale, after.rationale, resamples)
    if name in minilm:
        figures["minilm"] = score(minilm[name], resamples)
    return figures


def _latency(result: SetResult) -> dict[str, float | str | None]:
    return {
        "tokens_per_text": result.rationale_tokens,
        "ms_per_text": result.ms_per_text,
        "machine": result.machine,
    }


def final_figures(module: StepModule, heldout: Results) -> dict[str, float]:
    """Return the last step's metrics and the held-out results, by metric name; a sweep may optimise any of them."""
    figures = dict(module.history[-1])
    for name, result in heldout.get("after", {}).items():
        figures[f"val/{name}/rationale"] = result.rationale.figure()
    return figures


def print_report(
    console: Console,
    config: GraceConfig,
    summary: Mapping[str, Any],
    heldout: Results,
    folders: Sequence[Path],
) -> None:
    """Print the improvement, two texts with their rationales before and after, the folders, and the next command."""
    console.rule(f"{config.name}: {summary['steps']} steps, seed {config.seed}")
    if summary["table"]:
        console.print(heldout_table(config, summary["table"]))
    name, figures = "Reward", summary["reward_per_step"]
    if not figures:
        name, figures = "Loss", summary["loss_per_step"]
    part = max(1, len(figures) // 5)
    first, last = _mean(figures[:part]), _mean(figures[-part:])
    console.print(f"{name}, mean of the first and last {part} steps: {first:+.2f} -> {last:+.2f}", highlight=False)
    _print_examples(console, heldout)
    seconds = summary["seconds"]
    phases = ", ".join(f"{phase} {seconds[phase]:.0f} s" for phase in seconds if phase != "step")
    memory = ", ".join(f"{where} {gib:.1f} GiB" for where, gib in summary["peak_memory_gib"].items())
    console.print(f"Time: steps {seconds.get('step', 0):.0f} s ({phases}). Peak memory: {memory}.", highlight=False)
    console.print(f"Run folder: {config.run_dir}", highlight=False, soft_wrap=True)
    for folder in folders:
        console.print(f"Model: {folder}", highlight=False, soft_wrap=True)
    following = _next_command(config)
    if following is not None:
        console.print(Text.assemble("Next: ", (following, "bold")), highlight=False, soft_wrap=True)


def heldout_table(config: GraceConfig, rows: Mapping[str, Mapping[str, str]]) -> Table:
    """Return a table of results by set (columns) and kind of embedding (rows).

    Args:
        config: The settings, for the names of the sets and of the training data.
        rows: The text of each result, by set.
    """
    table = Table(title="Held-out, 95 % bootstrap intervals", title_justify="left")
    names = {
        "rationale": "rationale",
        "prompt_only": "prompt only",
        "before": "rationale, before",
        "after": "rationale, after",
        "rise": "rise",
        "prompt_only_before": "prompt only, before",
        "prompt_only_after": "prompt only, after",
        "minilm": "all-MiniLM-L6-v2",
    }
    present = [key for key in names if any(key in row for row in rows.values())]
    table.add_column("embedding")
    for name in rows:
        chosen = config.evaluation.sets[name]
        trained_on = any(source.path == f"builtin:{chosen.source}" for source in config.data.sources.values())
        domain = "in-domain" if trained_on else "out of domain"
        table.add_column(f"{chosen.source} {chosen.split}\n{_KINDS[chosen.kind]}\n{domain}", justify="right")
    for key in present:
        table.add_row(names[key], *(row.get(key, "") for row in rows.values()), style="bold" if key == "rise" else None)
    return table


def _print_examples(console: Console, heldout: Results) -> None:
    before, after = heldout.get("before", {}), heldout.get("after", {})
    name = next(iter(after), None)
    if name is None or name not in before:
        return
    for old, new in zip(before[name].examples, after[name].examples, strict=True):
        console.print(Text.assemble("\n", ("Text", "bold"), f"    {old.text}"), highlight=False)
        console.print(f"  before  {_one_line(old.rationale)}", highlight=False)
        console.print(f"  after   {_one_line(new.rationale)}", highlight=False)
    console.print()


def _next_command(config: GraceConfig) -> str | None:
    """Return this run's command as a sweep, or as an evaluation for a GPU run; None without a command line."""
    if config.hardware.accelerator == "cpu":
        weighed = not config.method.is_infonce and config.reward.terms.consistency is not None
        vary = "reward.terms.consistency.weight=0,0.2,1" if weighed else "seed=0,1,2"
        return this_command(vary, *([] if config.job.resume is None else ["job.resume=null"]), sweep=True)
    return this_command("job=evaluate", override("job.resume", config.run_dir))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
