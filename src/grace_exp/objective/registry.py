"""The algorithms by name, and which inputs each needs."""

from dataclasses import replace

from torch import Tensor

from grace_exp.config.objective import ObjectiveConfig
from grace_exp.objective import copg, dapo, dr_grpo, grpo, gspo, own_objective, reinforce_pp, remax, rloo
from grace_exp.objective.loss_inputs import AdvantageInputs, Algorithm

ALGORITHMS: dict[str, Algorithm] = {
    "grpo": grpo.ALGORITHM,
    "dr_grpo": dr_grpo.ALGORITHM,
    "dapo": dapo.ALGORITHM,
    "gspo": gspo.ALGORITHM,
    "rloo": rloo.ALGORITHM,
    "reinforce_pp": reinforce_pp.ALGORITHM,
    "reinforce_pp_baseline": reinforce_pp.GROUP_BASELINE,
    "remax": remax.ALGORITHM,
    "copg": copg.ALGORITHM,
    "custom": own_objective.ALGORITHM,
}
"""The algorithms by `ObjectiveConfig.algorithm`."""


def needs_greedy_baseline(config: ObjectiveConfig) -> bool:
    """Whether the algorithm needs `AdvantageInputs.baseline_G`."""
    return config.algorithm == "remax"


def needs_reference(config: ObjectiveConfig) -> bool:
    """Whether the objective needs a reference model."""
    return config.kl.coefficient > 0 and config.kl.anchor == "reference"


def needs_reference_kl(config: ObjectiveConfig) -> bool:
    """Whether it needs `AdvantageInputs.reference_kl_GK`: for a penalty in the reward, known before the update."""
    return config.kl.coefficient > 0 and config.kl.placement == "reward" and config.algorithm != "copg"


def shaped_rewards(inputs: AdvantageInputs, config: ObjectiveConfig) -> Tensor:
    """Return rewards with the punishment of length and the KL penalty, if it is in the reward.

    Args:
        inputs: All groups of the step.
        config: `overlong` and `kl`.

    Returns:
        `[groups, K]`, of the type of `inputs.rewards_GK`.

    Raises:
        ValueError: The penalty needs `reference_kl`, which is None.
    """
    rewards_GK = inputs.rewards_GK
    if config.overlong is not None:
        rewards_GK = rewards_GK + dapo.overlong_punishment(inputs.lengths_GK, inputs.max_tokens, config.overlong)
    if needs_reference_kl(config):
        if inputs.reference_kl_GK is None:
            raise ValueError("objective.kl.placement=reward needs reference_kl")
        rewards_GK = rewards_GK - config.kl.coefficient * inputs.reference_kl_GK
    return rewards_GK.to(inputs.rewards_GK.dtype)


def compute_advantages(inputs: AdvantageInputs, config: ObjectiveConfig) -> Tensor:
    """Shape the rewards and compute the advantages of the configured algorithm.

    Args:
        inputs: All groups of the step, over all processes.
        config: The objective.

    Returns:
        `[groups, K]`; 0 where not kept.

    Raises:
        ValueError: An input that the settings need is None.
    """
    shaped = replace(inputs, rewards_GK=shaped_rewards(inputs, config))
    return ALGORITHMS[config.algorithm].advantages(shaped, config)
