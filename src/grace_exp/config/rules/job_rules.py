"""The job and the settings that it needs."""

from grace_exp.config.groups import Groups
from grace_exp.config.require import Require


def job_rules(config: Groups, require: Require) -> None:
    """Check that a job has what it trains, exports or measures."""
    require(
        "adapter" not in config.callbacks.export or config.backbone.lora is not None,
        "callbacks.export contains 'adapter', but backbone.lora is null: there is no adapter to export",
    )
    if config.job.name == "train" and not config.method.is_infonce:
        _training_rules(config, require)
    require(
        config.backbone.pooling.transform == "none",
        "backbone.pooling.transform='center' in a run's settings: training pools without it. Set it to none; "
        "job=fit_center job.model=<run> puts it into what the run has exported",
    )
    if config.job.name == "distill":
        _distillation_rules(config, require)
    if config.job.name == "fit_adaptive":
        require(
            config.processes == 1,
            f"job=fit_adaptive with {config.processes} processes of hardware.devices x hardware.nodes: a rule is "
            "fitted by one; set hardware.devices=1",
        )
    if config.job.name == "serve":
        require(
            config.processes == 1,
            f"job=serve with {config.processes} processes of hardware.devices x hardware.nodes: a server is one "
            "process; set hardware.devices=1, and start a server per GPU (CUDA_VISIBLE_DEVICES, job.port)",
        )
    if config.job.name == "evaluate":
        _evaluation_rules(config, require)


def _training_rules(config: Groups, require: Require) -> None:
    require(
        config.backbone.pooling.region != "text",
        "backbone.pooling.region='text' gives all rationales of a group the same embedding, so that no reward "
        "differs within it: train with 'text_and_rationale' or 'rationale'",
    )
    require(
        config.rollout.group_size > 1
        or config.objective.algorithm in ("remax", "reinforce_pp")
        or config.objective.policy_gradient_weight == 0,
        "rollout.group_size=1: an advantage compares the rationales of a group; train with 2 or more, or with "
        "objective=remax or reinforce_pp",
    )


def _distillation_rules(config: Groups, require: Require) -> None:
    require(
        config.processes == 1,
        f"job=distill with {config.processes} processes of hardware.devices x hardware.nodes: a student is trained by "
        "one; set hardware.devices=1. job=embed of the same corpus on all devices fills the cache that it reads",
    )
    require(
        bool(config.evaluation.sets),
        f"job=distill, but evaluation={config.evaluation.name} has no sets to compare student and teacher on: choose "
        "that of the teacher's run, as evaluation=demo or heldout",
    )


def _evaluation_rules(config: Groups, require: Require) -> None:
    evaluation, model = config.evaluation, config.job.model
    require(
        bool(evaluation.sets) or evaluation.benchmark is not None or evaluation.general is not None,
        f"job=evaluate, but evaluation={evaluation.name} has no sets: choose evaluation=demo or heldout, "
        "a benchmark, as evaluation=offline_small, or evaluation=general",
    )
    require(
        evaluation.general is None or model is None,
        f"job.model={model} with evaluation={evaluation.name}: general ability is measured "
        "beside the base model's, with the backbone's settings and job.resume; job.model is for benchmarks, as "
        "evaluation=offline_small",
    )
    require(
        bool(evaluation.sets) or not evaluation.controls,
        f"evaluation.controls=true, but evaluation={evaluation.name} has no held-out sets to measure them on: choose "
        "evaluation=demo or heldout, or set evaluation.controls=false",
    )
    require(
        not evaluation.sets or model is None or evaluation.controls,
        f"job.model={model} with evaluation={evaluation.name}: held-out sets are measured with "
        "job.resume; job.model is for benchmarks, as evaluation=offline_small, and for evaluation.controls=true, whose "
        "rows prompt_only and rationale are the held-out figures",
    )
