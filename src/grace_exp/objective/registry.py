"""The algorithms by name, and what a step must bring for each."""

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
"""By `ObjectiveConfig.algorithm`."""


def needs_greedy_baseline(config: ObjectiveConfig) -> bool:
    """Whether `AdvantageInputs.baseline_G` must be given."""
    return config.algorithm == "remax"


def needs_reference(config: ObjectiveConfig) -> bool:
    """Whether there must be a reference model."""
    return config.kl.coefficient > 0 and config.kl.anchor == "reference"


def needs_reference_kl(config: ObjectiveConfig) -> bool:
    """Whether `AdvantageInputs.reference_kl_GK` must be given: for a penalty in the reward, known before the update."""
    return config.kl.coefficient > 0 and config.kl.placement == "reward" and config.algorithm != "copg"


def shaped_rewards(inputs: AdvantageInputs, config: ObjectiveConfig) -> Tensor:
    """Rewards with the punishment of length and the penalty in the reward.

    Args:
        inputs: All groups of the step.
        config: `overlong` and `kl`.

    Returns:
        `[groups, K]`, of the type of `inputs.rewards_GK`.

    Raises:
        ValueError: The penalty asks for `reference_kl`.
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
    """Shape the rewards and hand them to the configured algorithm.

    Args:
        inputs: All groups of the step, over all processes.
        config: The objective.

    Returns:
        `[groups, K]`; 0 where not kept.

    Raises:
        ValueError: An input that the configuration asks for is None.
    """
    shaped = replace(inputs, rewards_GK=shaped_rewards(inputs, config))
    return ALGORITHMS[config.algorithm].advantages(shaped, config)
