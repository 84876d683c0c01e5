"""CoPG, contrastive policy gradient: it needs no importance weights for rationales that another policy wrote.

Let R_i = r_i - beta log(pi(y_i) / pi_anchor(y_i)) be the regularised reward under the present policy, and D_ij the
difference of i and j. The source's loss of a pair is, up to a constant factor and with the whole log-ratio rho,

    l_ij  = - (D_ij r - beta / 2 D_ij rho) D_ij rho,      gradient  - (D_ij r - beta D_ij rho) grad D_ij rho,

which is 1 / (2 beta) (D_ij r - beta D_ij rho)^2 up to a constant: a least-squares fit of log-ratios to rewards. Its
minimum is pi = pi_anchor exp(r / beta) / Z, whoever wrote the samples. The pairs of a group of K are
averaged, 1 / (K - 1) x sum over i < j (arXiv 2504.00698), and the gradient is

    - sum over i of A_i grad log pi(y_i),      A_i = R_i - mean over j != i of R_j.

On the policy's own samples this is RLOO with k1 in the reward. A_i depends on the policy being updated, so `refresh`
computes it before each update. With A_i as constants, -A_i log pi has exactly this gradient, however a group is
spread over micro-batches.

beta is `kl.coefficient`, the anchor `kl.anchor`: the reference, or the behaviour policy, whose log-probs are stored
with the rationale. Source: arXiv 2406.19185 (the loss of a pair and its gradient).
"""

from torch import Tensor

from grace_exp.config.objective import ObjectiveConfig
from grace_exp.objective.advantage import leave_one_out
from grace_exp.objective.loss_inputs import Algorithm
from grace_exp.objective.rloo import leave_one_out_advantages
from grace_exp.objective.surrogate import score_function_loss


def contrastive_advantages(
    rewards_GK: Tensor, log_ratios_GK: Tensor, kept_GK: Tensor, config: ObjectiveConfig
) -> Tensor:
    """Return A_i under the present policy.

    Args:
        rewards_GK: `[groups, K]`.
        log_ratios_GK: log(pi / pi_anchor) of each rationale, `[groups, K]` nats.
        kept_GK: `[groups, K]` bool.
        config: Its `kl.coefficient` is beta.

    Returns:
        `[groups, K]`, without gradient; 0 where not kept.
    """
    return leave_one_out(rewards_GK - config.kl.coefficient * log_ratios_GK.detach(), kept_GK)


ALGORITHM = Algorithm(advantages=leave_one_out_advantages, loss=score_function_loss, refresh=contrastive_advantages)
