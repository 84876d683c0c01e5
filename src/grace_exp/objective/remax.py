"""ReMax: REINFORCE with the reward of the greedy rationale as baseline.

    A_i   = r_i - r(greedy rationale of the same prompt)
    loss  = - A_i x sum over t of log pi(token t)

The baseline costs one more rationale per prompt and needs no group: K = 1 is enough.
Source: arXiv 2310.10505.
"""

import torch
from torch import Tensor

from grace_exp.config.objective import ObjectiveConfig
from grace_exp.objective.advantage import scaled
from grace_exp.objective.loss_inputs import AdvantageInputs, Algorithm
from grace_exp.objective.surrogate import score_function_loss


def greedy_baseline(inputs: AdvantageInputs, config: ObjectiveConfig) -> Tensor:
    """Return rewards minus the greedy rationale's, scaled by `advantage_scale` (none in the source), `[groups, K]`.

    Raises:
        ValueError: `baseline_G` is None.
    """
    if inputs.baseline_G is None:
        raise ValueError("objective.algorithm=remax needs the greedy rationales' rewards")
    values_GK = torch.where(inputs.kept_GK, inputs.rewards_GK - inputs.baseline_G[:, None], 0.0)
    return scaled(values_GK, inputs.kept_GK, config.advantage_scale)


ALGORITHM = Algorithm(advantages=greedy_baseline, loss=score_function_loss)
