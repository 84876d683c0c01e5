"""Requirements of the pathwise gradient and of team credit on the other groups."""

from grace_exp.config.groups import Groups
from grace_exp.config.require import Require
from grace_exp.config.reward import WITHOUT_GRADIENT


def pathwise_rules(config: Groups, require: Require) -> None:
    """Check that the reward has a gradient in the trained weights; a method without a reward has no requirement."""
    if config.method.is_infonce:
        return
    objective, kind = config.objective, config.reward.encoder.kind
    rejection = config.method.name == "rejection_sft"
    require(
        objective.name != "exact" or objective.advantage_scale == "none",
        f"objective=exact with objective.advantage_scale={objective.advantage_scale!r} (the experiment's own value "
        "wins over the preset's): rescaled advantages are not those of the expected reward. Set "
        "objective.advantage_scale=none, or choose objective=grpo_pathwise",
    )
    require(
        objective.policy_gradient_weight > 0 or not rejection,
        "objective.policy_gradient_weight=0 with method=rejection_sft, which has no policy gradient: leave it at 1",
    )
    if objective.team_credit > 0:
        _team_credit_rules(config, require)
    if objective.pathwise.weight == 0:
        return
    weight = f"objective.pathwise.weight={objective.pathwise.weight}"
    terms = [name for name, term in vars(config.reward.terms).items() if term is not None and term.weight != 0]
    require(
        kind == "policy",
        f"{weight} with reward.encoder.kind={kind!r}: the reward is then computed from embeddings of weights that "
        "are not trained, so it has no gradient in the policy; set reward.encoder.kind=policy or "
        "objective.pathwise.weight=0",
    )
    require(
        config.hardware.strategy != "fsdp2",
        f"{weight} with hardware.strategy=fsdp2: the pathwise gradient has not been tried on sharded weights; set "
        "hardware.strategy=ddp or objective.pathwise.weight=0",
    )
    require(
        config.backbone.gradient_checkpointing != "selective"
        or objective.policy_gradient_weight == 0
        or objective.pathwise.parts_every_n_steps is None,
        f"objective.pathwise.parts_every_n_steps={objective.pathwise.parts_every_n_steps} with "
        "backbone.gradient_checkpointing='selective', which takes one backward pass a forward: set "
        "objective.pathwise.parts_every_n_steps=null, or backbone.gradient_checkpointing=full",
    )
    require(
        bool(set(terms).difference(WITHOUT_GRADIENT)),
        f"{weight}, but no term with a weight has a gradient in an embedding ({', '.join(terms) or 'none has a weight'}"
        "): add one, as '+reward.terms.infonce.weight=1', or set objective.pathwise.weight=0",
    )
    require(
        not rejection,
        f"{weight} with method=rejection_sft, which imitates rationales and takes nothing else of the objective: "
        "set objective.pathwise.weight=0 or method=grace",
    )


def _team_credit_rules(config: Groups, require: Require) -> None:
    """Check that the rationales of a group differ, and that there are other texts."""
    credit = f"objective.team_credit={config.objective.team_credit}"
    require(
        config.rollout.group_size > 1,
        f"{credit} with rollout.group_size=1: credit is relative to the mean of a text's rationales; write 2 or more, "
        "or set objective.team_credit=0",
    )
    require(
        config.job.batch_size > 1,
        f"{credit} with job.batch_size=1: there is no other text to help or harm; set objective.team_credit=0",
    )
