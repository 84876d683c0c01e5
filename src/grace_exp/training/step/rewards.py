"""From what was written and computed in a step to rewards and advantages."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from grace_exp.config.root import GraceConfig
from grace_exp.data.batch import Role, instance_keys
from grace_exp.objective.kl import KL_ESTIMATORS
from grace_exp.objective.loss_inputs import AdvantageInputs
from grace_exp.objective.registry import (
    compute_advantages,
    needs_greedy_baseline,
    needs_reference_kl,
    shaped_rewards,
)
from grace_exp.policy.packing import Region
from grace_exp.reward import RewardInputs, compose_reward, parse_rationale, required_inputs
from grace_exp.rollout.protocol import derive_seed
from grace_exp.training.step.rollouts import SIDES, Rollout, Rollouts
from grace_exp.training.step.step_scores import StepScores
from grace_exp.training.step.trained_role import TrainedRole

_ANCHORS = {Role.POSITIVE: Role.QUERY, Role.QUERY: Role.POSITIVE}


class Processes(Protocol):
    """The processes that share a step."""

    @property
    def global_rank(self) -> int:
        """Number of this one."""
        ...

    def gather(self, tensor: Tensor) -> Tensor:
        """Concatenates over processes along the first dimension, in rank order."""
        ...


class StepRewards:
    """From the rationales of a step to rewards and advantages; may be asked again when some were replaced.

    Rewards are computed on the groups of all processes, so that their number changes nothing. Only the rationales that
    `swapped` lends come from the instances of this process.
    """

    def __init__(
        self,
        config: GraceConfig,
        scores: StepScores,
        processes: Processes,
        decode: Callable[[Sequence[int]], str],
        step: int,
    ) -> None:
        """Start a step.

        Args:
            config: The whole run.
            scores: Of the step; holds every rollout that is asked for.
            processes: That share the step.
            decode: Token ids to text without control tokens, for the form of a rationale.
            step: Of the run.
        """
        self._config = config
        self._scores = scores
        self._processes = processes
        self._decode = decode
        self._seed = derive_seed(config.seed, step, "swap", processes.global_rank)
        self._needs = required_inputs(config.reward)
        self._borrowed: dict[tuple[Rollout, Rollout], Rollout] = {}

    def add(self, rollouts: Rollouts, new: Rollouts) -> None:
        """Compute what is missing.

        Args:
            rollouts: All of the step.
            new: Those of them that are new.
        """
        if new.instances:
            self._scores.add(new.group, new.others())
        if "swapped" in self._needs:
            before = set(self._borrowed)
            for role in rollouts.roles:
                self._with_swapped_rationales(rollouts.for_role(role), rollouts)
                if needs_greedy_baseline(self._config.objective):
                    self._with_swapped_rationales(rollouts.greedy(role), rollouts)
            missing = [rollout for pair, rollout in self._borrowed.items() if pair not in before]
            if missing:
                self._scores.add([], missing)

    def trained_roles(self, rollouts: Rollouts) -> list[TrainedRole]:
        """Rewards and advantages of all trained roles.

        Raises:
            EmbeddingError: An embedding has no direction.
        """
        return [self._trained_role(rollouts, role) for role in rollouts.roles]

    def _trained_role(self, rollouts: Rollouts, role: Role) -> TrainedRole:
        objective = self._config.objective
        inputs = self._inputs(rollouts, role, rollouts.for_role(role))
        reward = compose_reward(inputs, self._config.reward)
        baseline = None
        if needs_greedy_baseline(objective):
            greedy = self._inputs(rollouts, role, rollouts.greedy(role))
            baseline = compose_reward(greedy, self._config.reward).final[:, 0]
        judged = AdvantageInputs(
            rewards=reward.final,
            kept=reward.kept,
            lengths=inputs.lengths,
            max_tokens=self._config.rollout.max_tokens,
            baseline=baseline,
            reference_kl=self._reference_kl(rollouts.for_role(role)) if needs_reference_kl(objective) else None,
        )
        shaped, advantages = shaped_rewards(judged, objective), compute_advantages(judged, objective)
        return TrainedRole(role, inputs, reward, shaped, advantages, judged.reference_kl)

    def _inputs(self, rollouts: Rollouts, role: Role, samples: list[Rollout]) -> RewardInputs:
        """What `samples`, as many for each instance, are rewarded by."""
        region, groups, gather = self._config.backbone.pooling.region, len(rollouts.instances), self._processes.gather
        embedded = self._embedded(samples, region, groups)
        k, device, counts = embedded.shape[1], embedded.device, self._config.data.negative_counts()
        negatives, mask = self._negatives(rollouts, embedded)

        def column(values: list[Any]) -> Tensor:
            """One value a sample."""
            return gather(torch.tensor(values, device=device).view(groups, k))

        well_formed = swapped = swapped_from = bare = None
        if "well_formed" in self._needs:
            well_formed = column([parse_rationale(self._decode(one.completion.token_ids)).score for one in samples])
        if "swapped" in self._needs and groups > 1:
            swapped = gather(self._embedded(self._with_swapped_rationales(samples, rollouts), region, groups))
            swap_partners = torch.tensor(self._swap_partners(groups), device=device)
            swapped_from = gather(swap_partners + groups * self._processes.global_rank)
        if "bare" in self._needs:
            # A prompt's tokens do not see what follows: any of its rationales has the embedding without rationale.
            bare = gather(self._embedded(samples, "text", groups)[:, 0])
        return RewardInputs(
            rollouts=gather(embedded),
            anchors=gather(self._embedded(rollouts.for_role(_ANCHORS[role]), region, groups)),
            negatives=gather(negatives) if negatives is not None else None,
            truncated=column([one.completion.truncated for one in samples]),
            lengths=column([len(one.completion.token_ids) for one in samples]),
            negative_mask=gather(mask) if mask is not None else None,
            trained=SIDES[role],
            max_tokens=self._config.rollout.max_tokens,
            well_formed=well_formed,
            swapped=swapped,
            swapped_from=swapped_from,
            bare=bare,
            text_keys=gather(
                torch.tensor(
                    [instance_keys(written.instance, max(counts, default=0)) for written in rollouts.instances],
                    device=device,
                )
            ),
        )

    def _embedded(self, rollouts: Sequence[Rollout], region: Region, groups: int) -> Tensor:
        """[groups, as many as there are for each, hidden]."""
        flat = self._scores.embeddings(rollouts, region)
        return flat.view(groups, -1, flat.shape[1])

    def _negatives(self, rollouts: Rollouts, like: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """[groups, M, hidden] with the mask of real ones, [groups, M], where instances differ in their number."""
        counts = self._config.data.negative_counts()
        most = max(counts)
        if not most:
            return None, None
        own = torch.tensor([len(written.instance.negatives) for written in rollouts.instances], device=like.device)
        mask = torch.arange(most, device=like.device) < own[:, None]
        padded = like.new_zeros(*mask.shape, like.shape[-1])
        if bool(mask.any()):
            padded[mask] = self._scores.embeddings(
                rollouts.for_role(Role.NEGATIVE), self._config.backbone.pooling.region
            )
        return padded, mask if len(counts) > 1 else None

    def _reference_kl(self, rollouts: list[Rollout]) -> Tensor:
        """KL to the reference, estimated and summed over each rationale, [groups, K] nats."""
        estimator = KL_ESTIMATORS[self._config.objective.kl.estimator]
        values = estimator(self._scores.logprobs(rollouts), self._scores.reference_logprobs(rollouts)).sum(dim=1)
        return self._processes.gather(values.view(-1, self._config.rollout.group_size))

    def _with_swapped_rationales(self, samples: list[Rollout], rollouts: Rollouts) -> list[Rollout]:
        """Each sample's text with the same sample of another instance."""
        groups = len(rollouts.instances)
        if groups == 1:
            return []
        k = len(samples) // groups
        swap_partners = self._swap_partners(groups)
        pairs = [(one, samples[swap_partners[place // k] * k + place % k]) for place, one in enumerate(samples)]
        for own, lent in pairs:
            if (own, lent) not in self._borrowed:
                self._borrowed[own, lent] = replace(own, completion=lent.completion)
        return [self._borrowed[pair] for pair in pairs]

    def _swap_partners(self, groups: int) -> list[int]:
        """Whose rationales each group borrows: all of them in one random circle, so that none borrows its own."""
        circle = random.Random(self._seed).sample(range(groups), groups)
        following = dict(zip(circle, [*circle[1:], circle[0]], strict=True))
        return [following[group] for group in range(groups)]
