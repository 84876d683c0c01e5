"""Rejection sampling: cross-entropy on the best-rewarded rationale of each group (RAFT, arXiv 2304.06767).

Rationales, rewards and batches are GRACE's. Only the update differs: it imitates one rationale of a group, where the
policy gradient weighs all of them.
"""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from grace_exp.training.grace import GraceModule
from grace_exp.training.module import Backward
from grace_exp.training.step.nonfinite import rollout_evidence
from grace_exp.training.step.update import MiniBatch


class RejectionSftModule(GraceModule):
    """A GRACE step with cross-entropy in place of the policy gradient."""

    def _one_update(self, step: int, start: int, mini_batch: MiniBatch) -> dict[str, float]:
        """Minimise the token mean over all processes' chosen rationales, at temperature 1; a group may have none."""
        rewards_GK, kept_GK = mini_batch.rewards_GK, mini_batch.kept_GK
        assert rewards_GK is not None and kept_GK is not None
        groups, k = rewards_GK.shape
        best_G = rewards_GK.masked_fill(~kept_GK, -torch.inf).argmax(dim=1)
        rows = (torch.arange(groups, device=best_G.device) * k + best_G).tolist()
        sequences = [replace(mini_batch.sequences[row], temperature=1.0) for row in rows]
        weights_G = kept_GK.any(dim=1).float()
        lengths_G = torch.tensor([len(sequence.completion_ids) for sequence in sequences], device=weights_G.device)
        tokens, chosen = self.sum(torch.stack([(lengths_G * weights_G).sum(), weights_G.sum()])).tolist()
        divisor = max(tokens, 1.0)

        summed = torch.zeros((), device=weights_G.device)

        def accumulate(backward: Backward) -> Tensor:
            nonlocal summed
            plan = self.policy.plan(sequences, self.config.hardware.train_budget)
            for number, forward in enumerate(self.policy.planned_passes(sequences, plan), start=1):
                groups_N = torch.tensor(forward.batch.indices, dtype=torch.long, device=weights_G.device)
                groups_P = groups_N[forward.batch.owners_P]
                loss = -(forward.logprobs_P * weights_G[groups_P]).sum()
                # Gradients are averaged over processes.
                backward(loss * self.trainer.world_size / divisor, number == len(plan))
                summed = summed + loss.detach()
            return summed

        done = self.update(step, start, partial(rollout_evidence, mini_batch), accumulate)
        gain_G = rewards_GK.gather(1, best_G[:, None])[:, 0] - _mean(rewards_GK, kept_GK)
        gain = torch.where(weights_G > 0, gain_G, 0.0).sum()
        return done | {
            "loss": self.sum(summed).item() / divisor,
            "chosen_gain": self.sum(gain).item() / max(chosen, 1.0),
        }


def _mean(rewards_GK: Tensor, kept_GK: Tensor) -> Tensor:
    """Return the mean reward of each group's kept rationales, [groups]."""
    return torch.where(kept_GK, rewards_GK, 0.0).sum(dim=1) / kept_GK.sum(dim=1).clamp_min(1)
