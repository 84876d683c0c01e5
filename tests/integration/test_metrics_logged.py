"""Every listed metric of training is logged by some run, and on W&B as well as in the CSV."""

import pandas as pd

from grace_exp.tracking.metrics import METRICS, find_metric

FEW = ["job.steps=2", "job.batch_size=4"]
HELDOUT = [
    "evaluation=demo",
    "~evaluation.sets.stsb",
    "evaluation.sets.wordnet.size=4",
    "evaluation.minilm=false",
    "evaluation.every_n_steps=1",
]
RUNS = {
    "GRACE, with held-out figures and the same texts again": [*HELDOUT, "logger.evolution_every_n_steps=1"],
    "a penalty, importance weights and entropy": [
        "objective.kl.coefficient=0.1",
        "objective.importance.mode=token",
        "objective.entropy_coefficient=0.01",
    ],
    "exchanged instances": ["objective=dapo"],
    "stored instances": ["objective=copg", "objective.replay.share=0.25"],
    "rejection": ["method=rejection_sft"],
    "the pathwise gradient": ["objective.pathwise.weight=1", "objective.pathwise.parts_every_n_steps=1"],
    "team credit": ["objective.team_credit=1", "rollout.policy_role=both"],
    "difficulty, and an end to the tail": ["data.curriculum=difficulty", "rollout.tail={quantile: 0.5, margin: 1}"],
}
"""A setting that logs a new metric gets a run here, or joins one."""
NOT_TRAINING = ("mteb/", "general/", "controls/")
"""Prefixes of the figures of job=evaluate: test_mteb.py, test_general.py and test_other_jobs.py see them."""
NOT_HERE = {metric.name for metric in METRICS if metric.when in ("a GPU", "rollout.overlap=one_step")}
"""Needs a device that the tests have not; test_overlap.py, which has a server, sees the others."""


def test_every_listed_metric_is_logged_by_some_run(train) -> None:
    logged: set[str] = set()
    for settings in RUNS.values():
        logged |= set(pd.read_csv(train(*FEW, *settings).path / "metrics.csv")) - {"step"}
    found = {metric.name for name in logged if (metric := find_metric(name)) is not None}
    expected = {metric.name for metric in METRICS if not metric.name.startswith(NOT_TRAINING)} - NOT_HERE
    assert sorted(expected - found) == []
