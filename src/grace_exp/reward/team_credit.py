"""The effect of a rationale on the rewards of other texts, to first order."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from grace_exp.config.reward import RewardConfig
from grace_exp.reward.composer import compose_reward
from grace_exp.reward.inputs import RewardInputs


@dataclass(frozen=True, eq=False)
class TeamCredit:
    """First-order change of other texts' summed final rewards, relative to the mean embedding of the rationale's group.

    Attributes:
        rollouts_GK: Credit of each rollout from the rewards of the other groups, `[groups, K]` float32.
        anchors_GA: Credit of each anchor sample from the rewards of all groups, `[groups, A]` float32; used if anchors
            are trained rationales too (`rollout.policy_role=both`).
    """

    rollouts_GK: Tensor
    anchors_GA: Tensor


def team_credit(inputs: RewardInputs, config: RewardConfig) -> TeamCredit:
    """Return the credit that the policy gradient leaves out.

    A rationale of text j also enters the rewards of other texts, as a rival. If it is drawn instead of a typical one of
    its group, the sum R of their final rewards changes by about

        dR / du . (u - mean of u over the group)            u: the rationale's unit embedding

    This is exact if R is linear between the two; otherwise the error is of second order in the spread of the group. The
    rewards of the rationale's own text, also those of its siblings, are left to the advantage. A policy gradient with
    reward plus credit is, to first order, that of the sum of all rewards.

    Args:
        inputs: Embeddings of all groups of the step.
        config: Settings of the reward.

    Returns:
        Credits, detached from the graph; 0 where a rationale is not kept, or where rewards have no gradient.

    Raises:
        ValueError: As `compose_reward`.
    """
    rollouts_GKH = inputs.unit_rollouts_GKH.detach().requires_grad_()
    anchors_GAH = inputs.unit_anchors_GAH.detach().requires_grad_()
    with torch.enable_grad():
        leaves = replace(inputs, rollouts_GKH=rollouts_GKH, anchors_GAH=anchors_GAH, differentiable=True)
        reward = compose_reward(leaves, config)
        of_groups_G = (reward.final_GK * reward.kept_GK).sum(dim=1)
        of_all, of_each = of_groups_G.sum(), of_groups_G.unbind()
    if not of_groups_G.requires_grad:  # false for a reward of ranks, form and length only
        return TeamCredit(torch.zeros_like(reward.final_GK), torch.zeros_like(inputs.anchors_GAH[..., 0]))
    by_rollouts_GKH, by_anchors_GAH = _gradients(of_all, rollouts_GKH, anchors_GAH)
    own_GKH = torch.stack([_gradients(value, rollouts_GKH)[0][group] for group, value in enumerate(of_each)])
    every_GA = torch.ones(anchors_GAH.shape[:2], dtype=torch.bool, device=anchors_GAH.device)
    return TeamCredit(
        _against_the_mean(by_rollouts_GKH - own_GKH, rollouts_GKH.detach(), reward.kept_GK),
        _against_the_mean(by_anchors_GAH, anchors_GAH.detach(), every_GA),
    )


def _gradients(value: Tensor, *leaves: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
    return [
        torch.zeros_like(leaf) if gradient is None else gradient for leaf, gradient in zip(leaves, found, strict=True)
    ]


def _against_the_mean(gradients_GNH: Tensor, unit_GNH: Tensor, kept_GN: Tensor) -> Tensor:
    """Return `gradients . (unit - mean of the group's kept)`, `[groups, n]` float32; 0 where not kept."""
    weights_GN1 = kept_GN.double()[..., None]
    mean_G1H = (unit_GNH * weights_GN1).sum(dim=1, keepdim=True) / weights_GN1.sum(dim=1, keepdim=True).clamp_min(1)
    credit_GN: Tensor = (gradients_GNH * (unit_GNH - mean_G1H) * weights_GN1).sum(dim=-1).float()
    return credit_GN
