"""The tables of `job=plan` for other numbers of GPUs and whole corpora."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from grace_exp.config.root import GraceConfig
from grace_exp.training.plan.scale_plan import CorpusScale, TrainingScale


def print_scale(
    console: Console, config: GraceConfig, training: Sequence[TrainingScale], corpora: Sequence[CorpusScale]
) -> None:
    """Print both tables, and where their figures come from.

    Args:
        console: The console.
        config: The settings of the run.
        training: A row for each number of GPUs.
        corpora: A row for each corpus and number of GPUs.
    """
    assumed = config.job.plan
    console.print(_training(training, f"one epoch of {assumed.triplets:,} triplets"))
    console.print(_corpora(corpora))
    console.print(
        f"Hours, gather and gradients are assumed: see above, and {assumed.network:g} GB/s between machines of 8 "
        "(job.plan.network). Reward, reading, ids and cache are multiplied from what was measured on a CPU core "
        "(docs/scale.md). No GPU has measured any of this.",
        highlight=False,
    )


def _training(rows: Sequence[TrainingScale], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for name in ("GPUs", "batch", "steps", "hours", "GPU-hours", "G tokens written", "EFLOP"):
        table.add_column(name, justify="right")
    for name in ("model s", "gather MB", "gather s", "gradients s", "reward s (CPU)", "cosines GiB"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            f"{row.gpus}",
            f"{row.batch}",
            f"{row.steps}",
            _hours(row.hours),
            _hours(None if row.hours is None else row.hours * row.gpus),
            f"{row.tokens / 1e9:.3g}",
            f"{row.flops / 1e18:.3g}",
            f"{row.shares['model']:.3g}",
            f"{row.gather_mb:.3g}",
            *(f"{row.shares[name]:.2g}" for name in ("gather", "gradients", "reward")),
            f"{row.similarity_gib:.2g}",
        )
    return table


def _corpora(rows: Sequence[CorpusScale]) -> Table:
    table = Table(title="job=embed, one worker a GPU", title_justify="left")
    for name in ("texts", "GPUs", "hours", "GPU-hours", "T tokens", "EFLOP", "output TB", "files of 100,000"):
        table.add_column(name, justify="right")
    for name in ("reading h (each)", "reads TB (all)", "ids GiB (each)", "cache h (each)"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            f"{row.texts:,}",
            f"{row.gpus}",
            _hours(row.hours),
            _hours(None if row.hours is None else row.hours * row.gpus),
            f"{row.tokens / 1e12:.3g}",
            f"{row.flops / 1e18:.3g}",
            f"{row.output_gb / 1e3:.3g}",
            f"{row.files}",
            f"{row.read_hours:.2g}",
            f"{row.reads_tb:.3g}",
            f"{row.ids_gib:.2g}",
            f"{row.cache_hours:.2g}",
        )
    return table


def _hours(hours: float | None) -> str:
    return "?" if hours is None else f"{hours:,.3g}" if hours < 1000 else f"{hours:,.0f}"
