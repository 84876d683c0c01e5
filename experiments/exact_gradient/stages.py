"""The study's rows: what is trained, with which settings, in which order."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Mode = Literal["rationale", "prompt_only"]

GRPO = ("objective=grpo", "objective.advantage_scale=batch_std")
RLOO = ("objective=rloo", "objective.advantage_scale=none", "objective.length_normalizer=1")
EXACT = ("objective=exact", "objective.advantage_scale=none")
BOTH = ("objective=grpo_pathwise", "objective.advantage_scale=batch_std")
ALONE = ("objective=grpo", "objective.policy_gradient_weight=0", "objective.pathwise.weight=1")


@dataclass(frozen=True)
class Row:
    """A recipe.

    Attributes:
        name: In tables.
        overrides: Beside those of the study and of the stage.
        mode: How its embeddings are meant to be used.
        experiment: It starts from.
    """

    name: str
    overrides: tuple[str, ...]
    mode: Mode = "rationale"
    experiment: str = "demo_paper"


@dataclass(frozen=True)
class Stage:
    """Rows that are compared with one another.

    Attributes:
        name: Of its folder and table.
        title: One line.
        rows: New ones of this stage.
        seeds: Of each.
        overrides: For all its rows.
        also: Rows of earlier stages that stand in its table too, by `stage/row`.
        references: Rows that the others are compared with.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    overrides: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    references: tuple[str, ...] = ()


THREE, FIVE = (0, 1, 2), (0, 1, 2, 3, 4)
SUPERVISED = (
    Row("GRACE, paper reward", (*GRPO, "reward=paper_supervised", "reward.truncation.mode=none")),
    Row("GRACE, infonce", GRPO),
    Row("contrastive", ("method=contrastive", "method.temperature=0.1"), "prompt_only"),
    Row("contrastive on rationales", ("method=contrastive_on_rationales", "method.temperature=0.1")),
    Row("pathwise alone", ALONE),
    Row("both parts, batch_std", BOTH),
    Row("exact", EXACT),
)
UNSUPERVISED = tuple(
    Row(name, overrides, mode, "demo_unsup")
    for name, overrides, mode in (
        ("SimCSE", ("method=simcse",), "prompt_only"),
        ("contrastive on rationales", ("method=contrastive_on_rationales", "method.temperature=0.1"), "rationale"),
        ("GRACE, paper reward", GRPO, "rationale"),
        ("pathwise alone", ALONE, "rationale"),
        ("both parts, batch_std", BOTH, "rationale"),
        ("exact", EXACT, "rationale"),
        ("exact, infonce", (*EXACT, "reward=infonce"), "rationale"),
    )
)
# What `contrastive_on_rationales` minimises: the query picks its document among all documents and negatives.
QUERY_PICKS = (
    "rollout.policy_role=query",
    "reward.terms.infonce.negatives=all",
    "reward.terms.infonce.temperature=0.05",
)


def at_weight(weight: float) -> Row:
    """Exact but for the weight of the pathwise part."""
    return Row(f"pathwise weight {weight:g}", (*RLOO, f"objective.pathwise.weight={weight:g}"))


def four_times(row: Row) -> Row:
    """Four times the steps."""
    return Row(f"{row.name}, 64 steps", (*row.overrides, "job.steps=64"), row.mode, row.experiment)


def named(name: str) -> Row:
    """A row of the first stage."""
    return next(row for row in SUPERVISED if row.name == name)


def varied(suffix: str, *overrides: str, of: tuple[str, ...]) -> tuple[Row, ...]:
    """Rows of the first stage with other settings."""
    return tuple(Row(f"{name}, {suffix}", (*named(name).overrides, *overrides), named(name).mode) for name in of)


STEP_SIZES = ("GRACE, infonce", "both parts, batch_std", "exact")
STAGES = (
    Stage(
        "supervised",
        "Triplets, the demo's budget, the reward's InfoNCE (the document picks its query; temperature 0.1)",
        SUPERVISED,
        FIVE,
        references=("GRACE, infonce", "contrastive on rationales"),
    ),
    Stage(
        "unsupervised",
        "Sentences alone, the demo's budget",
        UNSUPERVISED,
        THREE,
        references=("GRACE, paper reward", "contrastive on rationales"),
    ),
    Stage(
        "weights",
        "The weight of the pathwise part; RLOO, advantages unscaled",
        tuple(map(at_weight, (0, 0.1, 0.3, 3))),
        THREE,
        also=("supervised/exact", "supervised/both parts, batch_std"),
        references=("exact",),
    ),
    Stage(
        "budget",
        "Four times the budget",
        tuple(map(four_times, map(named, ("contrastive on rationales", "both parts, batch_std", "exact")))),
        THREE,
        references=("contrastive on rationales, 64 steps",),
    ),
    Stage(
        "contrastive_loss",
        "Triplets, the loss of contrastive training (the query picks its document among all; temperature 0.05)",
        (
            Row("GRACE, infonce", (*GRPO, *QUERY_PICKS)),
            Row("contrastive", ("method=contrastive", "method.temperature=0.05"), "prompt_only"),
            Row("contrastive on rationales", ("method=contrastive_on_rationales", "method.temperature=0.05")),
            Row("pathwise alone", (*ALONE, *QUERY_PICKS)),
            Row("both parts, batch_std", (*BOTH, *QUERY_PICKS)),
            Row("exact", (*EXACT, *QUERY_PICKS)),
        ),
        THREE,
        references=("GRACE, infonce", "contrastive on rationales"),
    ),
    Stage(
        "rationale_budget",
        "Rationales of 8, 16 and 32 tokens",
        tuple(
            row
            for tokens in (8, 32)
            for row in varied(f"{tokens} tokens", f"rollout.max_tokens={tokens}", of=("GRACE, infonce", "exact"))
        ),
        THREE,
        also=("supervised/GRACE, infonce", "supervised/exact"),
        references=("exact",),
    ),
    Stage(
        "step_sizes",
        "Learning rate and clipping",
        (
            *varied("lr 2.5e-4", "optim.learning_rate=2.5e-4", of=STEP_SIZES),
            *varied("lr 1e-3", "optim.learning_rate=1e-3", of=STEP_SIZES),
            *varied("no clipping", "optim.max_grad_norm=null", of=STEP_SIZES),
        ),
        THREE,
        also=tuple(f"supervised/{name}" for name in STEP_SIZES),
        references=("exact",),
    ),
    Stage(
        "long",
        "Collapse: 150 steps",
        tuple(
            Row(
                row.name,
                (*row.overrides, "job.steps=150", "evaluation.every_n_steps=25", "logger.samples_every_n_steps=25"),
            )
            for row in map(named, ("GRACE, infonce", "exact"))
        ),
        (0,),
        references=("GRACE, infonce",),
    ),
)


def tasks(names: tuple[str, ...]) -> Iterator[tuple[Stage, Row, int]]:
    """Every run of the named stages: stage by stage, and within one seed by seed, so that rows compare early."""
    for stage in STAGES:
        if stage.name in names:
            yield from ((stage, row, seed) for seed in stage.seeds for row in stage.rows)


def folder_of(runs: Path, stage: Stage, row: Row, seed: int) -> Path:
    """Where a run is: by name, not by its settings, so that a later version of the package finds it again."""
    plain = re.sub(r"[^a-z0-9.]+", "_", row.name.lower()).strip("_")
    return runs / stage.name / plain / f"seed{seed}"


def items_of(folder: Path) -> Path:
    """Where a run's scores on `offline_study` are, item by item."""
    return folder / "offline_study" / "evaluation" / "offline_study_items.json"


def rows_of(stage: Stage) -> list[tuple[Stage, Row]]:
    """The rows of a stage's table, with the stage that each was run in: those of earlier stages first."""
    by_name = {one.name: one for one in STAGES}
    earlier = [name.split("/") for name in stage.also]
    also = [(by_name[owner], row) for owner, name in earlier for row in by_name[owner].rows if row.name == name]
    return [*also, *((stage, row) for row in stage.rows)]
