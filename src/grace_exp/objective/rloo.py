"""RLOO: REINFORCE with the mean of the group's other rewards as baseline.

    A_i   = r_i - mean over j != i of r_j  =  K / (K - 1) x (r_i - mean of the group's r)
    loss  = - A_i x sum over t of log pi(token t)

The rationale is one action, so the log-probs of its tokens are summed. The preset divides by rationales x
rollout.max_tokens, a constant, which does not change the direction.
Source: arXiv 2402.14740 (after Kool et al. 2019); its KL penalty is k1 in the reward.
"""

from torch import Tensor

from grace_exp.config.objective import ObjectiveConfig
from grace_exp.objective.advantage import leave_one_out, scaled
from grace_exp.objective.loss_inputs import AdvantageInputs, Algorithm
from grace_exp.objective.surrogate import score_function_loss


def leave_one_out_advantages(inputs: AdvantageInputs, config: ObjectiveConfig) -> Tensor:
    """Return rewards minus the mean of the others, scaled by `advantage_scale` (none in the source), `[groups, K]`."""
    return scaled(leave_one_out(inputs.rewards_GK, inputs.kept_GK), inputs.kept_GK, config.advantage_scale)


ALGORITHM = Algorithm(advantages=leave_one_out_advantages, loss=score_function_loss)
