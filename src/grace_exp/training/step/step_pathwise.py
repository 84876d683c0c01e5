"""The pathwise part of a step's updates: the reward's gradient through the embeddings.

The expected reward J = E over rationales r of R(h(x, r)) depends on the weights in two ways: through the rationales
that are written (the policy gradient), and through the embedding h of a text with its rationale. The second part is
E[dR/dh . grad h(x, r)], over every embedding that enters R. As with gradient caching (arXiv 2101.06983), dR/dh is
computed from embeddings without gradient, and then carried into the weights one micro-batch at a time.
"""

from collections.abc import Collection, Sequence
from typing import Literal

import torch
from torch import Tensor

from grace_exp.config.objective import ObjectiveConfig
from grace_exp.config.root import GraceConfig
from grace_exp.policy.packing import Region
from grace_exp.policy.policy import Policy
from grace_exp.policy.random_state import RandomState
from grace_exp.reward import reward_gradients
from grace_exp.training.step.pathwise_part import PathwisePart, embedding_passes
from grace_exp.training.step.rollouts import Rollout, Rollouts, sequences_of
from grace_exp.training.step.step_inputs import Embedded, Processes, StepInputs
from grace_exp.training.step.step_scores import EmbeddingPass, StepScores
from grace_exp.training.step.trained_role import TrainedRole


class StepPathwise:
    """The pathwise parts of a step's updates, one after another.

    Each update carries the gradient of the whole step's mean reward into the weights through the embeddings of its own
    instances. So every embedding is differentiated once per step, and with equal weights the updates add up to the
    gradient of the step. From the second update on the weights have changed, and the step is embedded and rewarded
    again.
    """

    def __init__(
        self,
        config: GraceConfig,
        policy: Policy,
        processes: Processes,
        inputs: StepInputs,
        scores: StepScores,
        rollouts: Rollouts,
        trained_roles: Sequence[TrainedRole],
    ) -> None:
        """Start a step before its first update.

        Args:
            config: The settings of the run.
            policy: The model.
            processes: The processes that share the step.
            inputs: Builder of the step's reward inputs.
            scores: Scores of the step.
            rollouts: Rollouts of this process.
            trained_roles: Trained roles of all processes.
        """
        self._config = config
        self._policy = policy
        self._processes = processes
        self._inputs = inputs
        self._scores = scores
        self._rollouts = rollouts
        self._trained_roles = trained_roles
        lora = config.backbone.lora
        self._dropout = lora is not None and lora.dropout > 0
        self._scored = not self._dropout  # whether the scored embeddings are those of the present weights and mode

    def part(self, start: int, groups: int) -> PathwisePart:
        """Return the pathwise part of the next update: of groups `start` to `start + groups - 1` (`MiniBatch.part`).

        Raises:
            EmbeddingError: An embedding is zero or not finite under the present weights.
        """
        roles = len(self._rollouts.roles)
        part = self._rollouts.only(self._rollouts.instances[start // roles : (start + groups) // roles])
        trained, entering = part.group, self._inputs.entering(self._rollouts)
        texts, borrowers = {*trained}, self._inputs.borrowers()
        others = [rollout for rollout in entering if borrowers.get(rollout) in texts]
        if self._config.objective.pathwise.anchors:
            others += [rollout for rollout in part.others() if rollout in {*entering}]
        embedded: Embedded = self._scores
        states: list[RandomState] = []
        other_states: list[RandomState] = []
        if not self._scored:
            embedded = _EmbeddedAnew()
            self._embed(embedded, trained, states)
            self._embed(embedded, others, other_states)
            with_gradient = {*trained, *others}
            embedded.take(self._without_dropout([rollout for rollout in entering if rollout not in with_gradient]))
        value, gradients = self._gradients(embedded, {*trained, *others})
        self._scored = False
        return PathwisePart(
            value, gradients, others, self._inputs.regions, self._scores.other_passes, states, other_states
        )

    @torch.no_grad()
    def _embed(self, embedded: "_EmbeddedAnew", rollouts: Sequence[Rollout], states: list[RandomState]) -> None:
        """Embed with the micro-batches of the update; dropout's states are appended to `states`."""
        budget, regions = self._config.hardware.train_budget, self._inputs.regions
        passes, count = embedding_passes(self._policy, rollouts, budget, regions)
        for _ in range(count):
            if self._dropout:
                states.append(RandomState(self._policy.model.device))
            embedded.take(next(passes))

    def _without_dropout(self, rollouts: Sequence[Rollout]) -> EmbeddingPass:
        """Embed rollouts of the step's other updates: rivals that get no gradient here."""
        if not rollouts:
            return EmbeddingPass((), {})
        return EmbeddingPass(rollouts, self._policy.embed(sequences_of(rollouts), self._inputs.regions))

    def _gradients(
        self, embedded: Embedded, with_gradient: Collection[Rollout]
    ) -> tuple[Tensor, dict[Region, dict[Rollout, Tensor]]]:
        """Return the step's mean reward, and the gradients of the loss by the embeddings of `with_gradient`."""
        pathwise, job = self._config.objective.pathwise, self._config.job
        updates = job.batch_size // self._config.objective.mini_batch_size
        kept = torch.stack([trained.reward.kept_GK.sum() for trained in self._trained_roles]).sum().clamp_min(1)
        scale = -pathwise.weight * updates * self._processes.world_size  # gradients are averaged over processes
        values: list[Tensor] = []
        found: dict[Region, dict[Rollout, Tensor]] = {region: {} for region in self._inputs.regions}
        for trained in self._trained_roles:
            inputs = trained.inputs
            if embedded is not self._scores:
                samples = self._rollouts.for_role(trained.role)
                inputs = self._inputs.of(embedded, self._rollouts, trained.role, samples)
            mean = reward_gradients(inputs, self._config.reward, trained.reward.kept_GK / kept)
            values.append(mean.value)
            for field, rollout, region, row in self._inputs.rows(mean.fields, self._rollouts, trained.role):
                if rollout in with_gradient and (pathwise.anchors or field not in ("anchors_GAH", "negatives_GMH")):
                    before = found[region].get(rollout)
                    found[region][rollout] = row * scale if before is None else before + row * scale
        return torch.stack(values).sum(), found


def embedding_gradients(objective: ObjectiveConfig) -> Literal["none", "trained", "all"]:
    """Return whose embeddings get a gradient."""
    if objective.pathwise.weight == 0:
        return "none"
    return "all" if objective.pathwise.anchors else "trained"


class _EmbeddedAnew:
    """Embeddings under the present weights."""

    def __init__(self) -> None:
        self._found: dict[Region, dict[Rollout, Tensor]] = {}

    def take(self, forward: EmbeddingPass) -> None:
        for region, rows_NH in forward.embeddings.items():
            self._found.setdefault(region, {}).update(zip(forward.rollouts, rows_NH, strict=True))

    def embeddings(self, rollouts: Sequence[Rollout], region: Region) -> Tensor:
        return torch.stack([self._found[region][rollout] for rollout in rollouts])
