"""Compute from shapes whether a run fits, and how long it will take."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from grace_exp.config.root import GraceConfig
from grace_exp.jobs.plan_tables import print_scale
from grace_exp.jobs.terminal import our_console
from grace_exp.rollout.vllm.memory import GIB
from grace_exp.tracking.summary import write_json_atomic
from grace_exp.training.plan.dimensions import planned_dimensions
from grace_exp.training.plan.run_plan import RunPlan, plan_run, planned_memory
from grace_exp.training.plan.scale_plan import CorpusScale, TrainingScale, corpus_scale, training_scale
from grace_exp.training.plan.this_device import device_name, total_memory

PLAN_FILE = "plan.json"
"""The plan's file in the run folder."""


def plan(config: GraceConfig) -> dict[str, float]:
    """Print the plan of the configured run and write it to `<run_dir>/plan.json`, without loading model or data.

    Returns:
        `plan/fits` (1 or 0), `plan/memory_gib` (of the largest phase), and `plan/hours` if there is an estimate.

    Raises:
        ConfigError: `hardware.memory_gib` is null, and there is no GPU to ask.
        MissingResourceError: The model's shape is unknown.
    """
    config = replace(config, job=replace(config.job, name="train"))  # the job that is planned
    accelerator = config.hardware.accelerator
    memory = planned_memory(config, total_memory(accelerator))
    dimensions, device = planned_dimensions(config.backbone), device_name(accelerator)
    plan = plan_run(config, dimensions, memory, device=device)
    training = training_scale(config, dimensions, memory, device)
    corpora = corpus_scale(config, dimensions, plan)
    path = write_plan(config, plan, training, corpora)
    _print(our_console(), config, plan)
    if training:
        print_scale(our_console(), config, training, corpora)
    our_console().print(f"Written to {path}", highlight=False, soft_wrap=True)
    figures = {"plan/fits": float(plan.memory.fits), "plan/memory_gib": plan.memory.largest / GIB}
    return figures | ({"plan/hours": plan.hours} if plan.hours is not None else {})


def write_plan(
    config: GraceConfig,
    plan: RunPlan,
    training: Sequence[TrainingScale] = (),
    corpora: Sequence[CorpusScale] = (),
) -> Path:
    """Write the plan into the run folder."""
    path = Path(config.run_dir) / PLAN_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    scale = {"training": [asdict(row) for row in training], "corpora": [asdict(row) for row in corpora]}
    write_json_atomic(path, plan.as_dict() | ({"scale": scale} if training else {}))
    return path


def verdict(plan: RunPlan) -> str:
    """Return a line that says whether the run fits."""
    memory = plan.memory
    room = f"{memory.largest / GIB:.1f} of {memory.usable / GIB:.1f} GiB (95 % of {memory.memory / GIB:.1f})"
    if memory.problem is not None:
        return f"does not fit: {memory.problem}"
    return f"fits: {room}" if memory.fits else f"does not fit: {room}"


def _print(console: Console, config: GraceConfig, plan: RunPlan) -> None:
    settings = plan.settings
    training = "all weights" if settings.dimensions.lora is None else f"LoRA of rank {settings.dimensions.lora.rank}"
    console.print(
        Text.assemble(
            (config.name, "bold"),
            f": {config.backbone.name} ({settings.dimensions.parameters / 1e9:.2f} B parameters), {training}, "
            f"{settings.processes} x {settings.memory / GIB:.0f} GiB, {settings.strategy}, gradient checkpointing "
            f"{settings.checkpointing}",
        ),
        highlight=False,
    )
    console.print(_memory_table(plan))
    console.print(verdict(plan), highlight=False, style="green" if plan.memory.fits else "red", markup=False)
    for overrides in plan.advice:
        console.print(f"  fits with: {overrides}", highlight=False, markup=False, soft_wrap=True)
    if not plan.memory.fits and not plan.advice:
        console.print("  none of the usual changes is enough: take larger GPUs, or more with fsdp2", highlight=False)
    if plan.memory.cached_sequences is not None:
        console.print(f"cache: {plan.memory.cached_sequences} sequences of {settings.longest} tokens", highlight=False)
    console.print(
        f"micro-batches: {plan.memory.train_tokens} tokens with gradients, {plan.memory.score_tokens} without",
        highlight=False,
    )
    if plan.memory.keeps_forward:
        console.print("the forwards that score are kept for the update (hardware.keep_forward)", highlight=False)
    console.print(_work_table(plan))
    if plan.speed is None:
        console.print(
            "hours: unknown, because this device's speed is unknown (hardware.peak_tflops, hardware.memory_bandwidth)",
            highlight=False,
        )
    if plan.hours is None or plan.speed is None:
        return
    assumed = config.job.plan
    console.print(
        f"estimate, nothing was measured: {plan.hours:.1f} h for {plan.steps} steps on {plan.speed.name} (MFU "
        f"{assumed.mfu:.0%}, decoding at {assumed.decode_efficiency:.0%} of the bandwidth, prompts of "
        f"{assumed.prompt_tokens} and rationales of {assumed.rationale_tokens} tokens: job.plan.*), "
        "without evaluations",
        highlight=False,
    )


def _memory_table(plan: RunPlan) -> Table:
    memory = plan.memory
    table = Table(title="memory of one device, GiB", title_justify="left")
    table.add_column("part")
    for phase in memory.phases:
        table.add_column(phase, justify="right")
    for name in dict.fromkeys(name for parts in memory.phases.values() for name in parts):
        sizes = [parts.get(name) for parts in memory.phases.values()]
        table.add_row(name, *("" if size is None else f"{size / GIB:.2f}" for size in sizes))
    table.add_section()
    table.add_row("sum", *(f"{memory.total(phase) / GIB:.2f}" for phase in memory.phases))
    return table


def _work_table(plan: RunPlan) -> Table:
    table = Table(title="one step, all processes", title_justify="left")
    for column in ("phase", "sequences", "tokens", "PFLOP", "seconds (estimate)"):
        table.add_column(column, justify="left" if column == "phase" else "right")
    for phase, work in plan.work.items():
        seconds = f"{plan.seconds[phase]:.1f}" if phase in plan.seconds else "?"
        table.add_row(phase, f"{work.sequences}", f"{work.tokens}", f"{work.flops / 1e15:.3g}", seconds)
    return table
