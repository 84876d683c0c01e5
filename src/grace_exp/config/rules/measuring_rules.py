"""What is measured during training, and which checkpoint is best."""

from grace_exp.config.groups import Groups
from grace_exp.config.require import Require


def measuring_rules(config: Groups, require: Require) -> None:
    """Check that every metric that a setting names is measured by the run."""
    evaluation, monitor = config.evaluation, config.callbacks.checkpoint.monitor
    metric = config.optimized_metric or ""
    optimized_set = metric.removeprefix("val/").removesuffix("/rationale")
    require(
        metric != f"val/{optimized_set}/rationale" or optimized_set in evaluation.sets,
        f"optimized_metric={metric}, but evaluation={evaluation.name} has no set {optimized_set!r}: choose "
        "another evaluation, as evaluation=demo, or another metric",
    )
    require(
        evaluation.every_n_steps is None or bool(evaluation.sets),
        f"evaluation.every_n_steps={evaluation.every_n_steps}, but evaluation={evaluation.name} has no sets: "
        "choose evaluation=demo or heldout",
    )
    if monitor == "embed/augmentation_overlap":
        require(
            not config.method.is_infonce and config.job.batch_size > 1 and config.rollout.group_size > 1,
            "callbacks.checkpoint.monitor=embed/augmentation_overlap compares several rationales of several texts: "
            "it needs a method with rewards, and job.batch_size and rollout.group_size of 2 or more",
        )
    elif monitor is not None:
        monitored_set = monitor.removeprefix("val/").removesuffix("/rationale")
        require(
            monitored_set in evaluation.sets,
            f"callbacks.checkpoint.monitor={monitor}, but evaluation={evaluation.name} has no set {monitored_set!r}",
        )
        require(
            evaluation.every_n_steps is not None,
            f"callbacks.checkpoint.monitor={monitor} is not measured during training: set evaluation.every_n_steps",
        )
