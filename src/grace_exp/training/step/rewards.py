"""Compute the rewards and advantages of a step from its rationales and scores."""

from collections.abc import Mapping

from torch import Tensor

from grace_exp.config.root import GraceConfig
from grace_exp.data.batch import Role
from grace_exp.objective.kl import KL_ESTIMATORS
from grace_exp.objective.loss_inputs import AdvantageInputs
from grace_exp.objective.registry import (
    compute_advantages,
    needs_greedy_baseline,
    needs_reference_kl,
    shaped_rewards,
)
from grace_exp.reward import RewardInputs, compose_reward, team_credit
from grace_exp.training.step.missed import missed_shares
from grace_exp.training.step.rollouts import Rollout, Rollouts
from grace_exp.training.step.step_inputs import Processes, StepInputs
from grace_exp.training.step.step_scores import StepScores
from grace_exp.training.step.trained_role import TrainedRole


class StepRewards:
    """Computes rewards and advantages of a step's rationales, also again after some were replaced."""

    def __init__(self, config: GraceConfig, scores: StepScores, processes: Processes, inputs: StepInputs) -> None:
        """Start a step without rationales.

        Args:
            config: The settings of the run.
            scores: Scores of the step; they must hold every rollout that enters.
            processes: The processes that share the step.
            inputs: Builder of the step's reward inputs.
        """
        self._config = config
        self._scores = scores
        self._processes = processes
        self._inputs = inputs
        self.missed: dict[int, float] = {}
        """Under `data.curriculum`: `missed_shares` of every instance that was rewarded in this step."""

    def add(self, rollouts: Rollouts, new: Rollouts) -> None:
        """Score rollouts that were not scored yet.

        Args:
            rollouts: All rollouts of the step.
            new: The new ones among them.
        """
        if new.instances:
            self._scores.add(new.group, new.others(), new.pooled)
        before = self._inputs.borrowers()
        for role in rollouts.roles:
            self._inputs.swapped(rollouts.for_role(role), rollouts)
            if needs_greedy_baseline(self._config.objective):
                self._inputs.swapped(rollouts.greedy(role), rollouts)
        missing = [rollout for rollout in self._inputs.borrowers() if rollout not in before]
        if missing:
            self._scores.add([], missing)

    def trained_roles(self, rollouts: Rollouts) -> list[TrainedRole]:
        """Return the rewards and advantages of all trained roles.

        Raises:
            EmbeddingError: An embedding is zero or not finite.
        """
        inputs = {
            role: self._inputs.of(self._scores, rollouts, role, rollouts.for_role(role)) for role in rollouts.roles
        }
        credits = self._team_credit(inputs)
        trained_roles = [self._trained_role(rollouts, role, inputs[role], credits.get(role)) for role in rollouts.roles]
        if self._config.data.curriculum == "difficulty":
            self.missed |= missed_shares(rollouts, trained_roles, self._processes.gather)
        return trained_roles

    def _team_credit(self, inputs: Mapping[Role, RewardInputs]) -> dict[Role, Tensor]:
        """Return the weighted credit of each trained role's rationales, [groups, K]; {} without credit."""
        weight = self._config.objective.team_credit
        if weight == 0:
            return {}
        found = {role: team_credit(of_role, self._config.reward) for role, of_role in inputs.items()}
        credit = {role: weight * gradients.rollouts_GK for role, gradients in found.items()}
        if len(found) > 1:  # each side's rationales are the other's anchors
            for role, other in zip(credit, reversed(found.values()), strict=True):
                credit[role] = credit[role] + weight * other.anchors_GA
        return credit

    def _trained_role(
        self, rollouts: Rollouts, role: Role, inputs: RewardInputs, credit_GK: Tensor | None
    ) -> TrainedRole:
        objective = self._config.objective
        reward = compose_reward(inputs, self._config.reward)
        baseline_G = None
        if needs_greedy_baseline(objective):
            greedy = self._inputs.of(self._scores, rollouts, role, rollouts.greedy(role))
            baseline_G = compose_reward(greedy, self._config.reward).final_GK[:, 0]
        judged = AdvantageInputs(
            rewards_GK=reward.final_GK if credit_GK is None else reward.final_GK + credit_GK,
            kept_GK=reward.kept_GK,
            lengths_GK=inputs.lengths_GK,
            max_tokens=self._config.rollout.max_tokens,
            baseline_G=baseline_G,
            reference_kl_GK=self._reference_kl(rollouts.for_role(role)) if needs_reference_kl(objective) else None,
        )
        shaped_GK, advantages_GK = shaped_rewards(judged, objective), compute_advantages(judged, objective)
        return TrainedRole(role, inputs, reward, shaped_GK, advantages_GK, judged.reference_kl_GK, credit_GK)

    def _reference_kl(self, rollouts: list[Rollout]) -> Tensor:
        """Return the estimated KL to the reference, summed over each rationale, [groups, K] nats."""
        estimator = KL_ESTIMATORS[self._config.objective.kl.estimator]
        estimates_NT = estimator(self._scores.logprobs(rollouts), self._scores.reference_logprobs(rollouts))
        return self._processes.gather(estimates_NT.sum(dim=1).view(-1, self._config.rollout.group_size))
