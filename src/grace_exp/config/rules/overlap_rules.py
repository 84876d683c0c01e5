"""Requirements of rationales that are written while the step before trains."""

from grace_exp.config.groups import Groups
from grace_exp.config.require import Require


def overlap_rules(config: Groups, require: Require) -> None:
    """Check that the engine has its own device, and that the method can train on rationales of older weights."""
    if config.rollout.overlap == "none" or config.job.name not in ("train", "plan"):
        return
    rollout, objective, method = config.rollout, config.objective, config.method.name
    key, mend = f"rollout.overlap={rollout.overlap}", "rollout.overlap=none"
    require(
        rollout.engine != "transformers",
        f"{key} with rollout=transformers: it decodes with the policy's own weights on the policy's own device, so "
        f"nothing would run beside the update; set rollout=vllm_server, or {mend}",
    )
    require(
        rollout.engine != "vllm",
        f"{key} with rollout=vllm: the engine shares the policy's device, and sleeps there while the policy trains; "
        f"set rollout=vllm_server with its own devices, or {mend}",
    )
    require(
        config.data.curriculum == "none",
        f"{key} with data.curriculum={config.data.curriculum}: the next step would be written before this one has "
        f"found how difficult its instances are; set data.curriculum=none, or {mend}",
    )
    require(
        method == "grace",
        f"{key} with method={method}: only method=grace weighs rationales by how likely the present weights would "
        f"have written them (objective.importance); set {mend}",
    )
    if method != "grace":
        return
    require(
        objective.algorithm != "copg",
        f"{key} with objective.algorithm='copg', which takes no importance weights: its way to learn from older "
        f"rationales is objective.replay; set {mend}, or choose another objective, as objective=grpo",
    )
    require(
        objective.algorithm == "copg" or objective.importance.mode != "none",
        f"{key} with objective.importance.mode='none': rationales would be trained as if the present weights had "
        f"written them; set objective.importance.mode=token, or {mend}",
    )
    require(
        objective.pathwise.weight == 0,
        f"{key} with objective.pathwise.weight={objective.pathwise.weight}: the pathwise gradient is a mean over "
        "rationales that the present weights write, and has no importance weights; set objective.pathwise.weight=0, "
        f"or {mend}",
    )
    require(
        objective.dynamic_sampling is None,
        f"{key} with objective.dynamic_sampling: instances that are exchanged within a step would have to be written "
        f"by an engine that is at work for the next; set objective.dynamic_sampling=null, or {mend}",
    )
