"""Whether the forward that scores a step's rationales can also serve the update."""

from collections.abc import Iterator

from grace_exp.config.groups import Groups

_KEEP = "hardware.keep_forward=true"


def kept_forward_problems(config: Groups) -> Iterator[str]:
    """Yield each reason why a step's forwards cannot be kept for its update, with the setting to change."""
    lora, objective = config.backbone.lora, config.objective
    if config.job.batch_size != objective.mini_batch_size:
        yield f"{_KEEP} needs one update a step: set objective.mini_batch_size={config.job.batch_size} (job.batch_size)"
    if config.method.name == "grace" and lora is not None and lora.dropout > 0:
        yield f"{_KEEP} scores with the update's dropout: set backbone.lora.dropout=0"
    if objective.dynamic_sampling is not None:
        yield (
            f"{_KEEP} keeps forwards of rationales that objective.dynamic_sampling may exchange: "
            "set hardware.keep_forward=false"
        )
    if objective.replay is not None:
        yield (
            f"{_KEEP} takes scored log-probs for old ones, which those of stored rationales (objective.replay) are "
            "not: set hardware.keep_forward=false"
        )
    if config.method.name == "rejection_sft":
        yield (
            f"method=rejection_sft with {_KEEP}: it trains on one rationale of a group, chosen after scoring; set "
            "hardware.keep_forward=false"
        )
