"""Requirements of a training method on the other groups."""

from grace_exp.config.groups import Groups
from grace_exp.config.require import Require


def method_rules(config: Groups, require: Require) -> None:
    """Check that the method's positives and negatives exist, and that its two views of a text differ."""
    method, mode, lora = config.method, config.data.mode, config.backbone.lora
    if method.name == "simcse":
        require(
            mode == "unsupervised",
            f"method=simcse with data.mode={mode!r}: its positive is the text itself. Choose unsupervised data "
            "(data=wiki1m, stsb_unsup, wordnet_unsup, texts), or method=contrastive",
        )
        require(
            method.dropout != 0 or (lora is not None and lora.dropout > 0),
            "method=simcse with method.dropout=0 and no backbone.lora.dropout: both views of a text would be equal",
        )
    if method.name == "contrastive":
        require(
            mode == "supervised",
            f"method=contrastive with data.mode={mode!r}: its positives are other texts. Choose supervised data "
            "(data=e5, stsb, wordnet, triplets), or method=simcse",
        )
    if method.name == "contrastive_on_rationales":
        require(
            mode == "supervised" or config.rollout.anchor_temperature > 0,
            f"method=contrastive_on_rationales with data.mode={mode!r} and rollout.anchor_temperature=0: both "
            "rationales of a text would be equal; sample them",
        )
        require(
            config.backbone.pooling.region != "text",
            "method=contrastive_on_rationales with backbone.pooling.region='text' leaves the rationales out: choose "
            "'text_and_rationale', 'rationale', or method=contrastive",
        )
    if method.is_infonce and config.job.name == "train":
        has_own_negatives = mode == "supervised" and 0 not in config.data.negative_counts()
        require(
            config.objective.mini_batch_size > 1 or has_own_negatives,
            f"method={method.name} with objective.mini_batch_size=1: without its own negatives a text needs other "
            "texts in its update; take 2 or more",
        )
    if not config.rollout.anchor_rationales and not method.prompt_only:
        require(
            config.rollout.policy_role != "both",
            "rollout.anchor_rationales=false with rollout.policy_role='both': both sides are trained, so neither is "
            "without rationales. Set rollout.policy_role=query (or positive), or rollout.anchor_rationales=true",
        )
        require(
            config.backbone.pooling.region != "rationale",
            "rollout.anchor_rationales=false with backbone.pooling.region='rationale', in which a text without one has "
            "no embedding: set backbone.pooling.region=text_and_rationale, or rollout.anchor_rationales=true",
        )
    if method.name == "rejection_sft":
        _rejection_sft_rules(config, require)
    if config.data.curriculum == "difficulty" and config.job.name == "train":
        require(
            not method.is_infonce,
            f"data.curriculum=difficulty with method={method.name}: it goes by the ranks of rationales, which this "
            "method does not compute; set data.curriculum=none",
        )
        require(
            config.job.batch_size > 1,
            "data.curriculum=difficulty with job.batch_size=1: a rationale has no other instance to find; take 2 or "
            "more",
        )


def _rejection_sft_rules(config: Groups, require: Require) -> None:
    objective = config.objective
    kl_in_loss = objective.kl.coefficient > 0 and (objective.kl.placement == "loss" or objective.algorithm == "copg")
    require(
        not kl_in_loss and objective.entropy_coefficient == 0 and objective.replay is None,
        "method=rejection_sft knows of the objective only what shapes the reward: set objective.kl.coefficient=0 "
        "(or objective.kl.placement=reward), objective.entropy_coefficient=0 and objective.replay=null",
    )
