"""One optimizer update from scored rollouts."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor

from grace_exp.config.objective import ObjectiveConfig
from grace_exp.objective.aggregate import counts
from grace_exp.objective.loss_inputs import LossInputs, counted_tokens
from grace_exp.objective.registry import ALGORITHMS
from grace_exp.policy.forward_pass import ForwardPass, collect
from grace_exp.policy.packing import TextSequence
from grace_exp.policy.policy import Policy
from grace_exp.policy.reference import Reference
from grace_exp.training.step.gradient_parts import PolicyGradient
from grace_exp.training.step.pathwise_part import PathwisePart
from grace_exp.training.step.rollouts import Rollout
from grace_exp.training.step.step_scores import EmbeddingPass


@dataclass(frozen=True, eq=False)
class MiniBatch:
    """Groups of rationales on this process: the inputs of one update, or of all updates of a step.

    Attributes:
        sequences: The rationales, group by group, n = groups x K.
        advantages_GK: [groups, K].
        old_logprobs_NT: Log-probs under the policy before this step's first update (for stored rationales: under the
            policy that wrote them), [n, longest or more].
        rewards_GK: Rewards after shaping, [groups, K]; for algorithms that refresh their advantages, and for replay.
        kept_GK: False for rationales that are left out, [groups, K] bool; None: all are kept.
        engine_logprobs_NT: Log-probs from the engine, in the shape of `old_logprobs_NT`; None: no token is left out.
        rollouts: The origin of the sequences, which is saved if the update is bad.
        forwards: Passes over the sequences that already exist with gradients; if empty, the update computes them.
        pathwise: From the first group and the number of groups to their pathwise part under the present weights
            (`StepPathwise.part`); None: no pathwise part.
    """

    sequences: Sequence[TextSequence]
    advantages_GK: Tensor
    old_logprobs_NT: Tensor
    rewards_GK: Tensor | None = None
    kept_GK: Tensor | None = None
    engine_logprobs_NT: Tensor | None = None
    rollouts: Sequence[Rollout] = ()
    forwards: Sequence[ForwardPass] = ()
    pathwise: Callable[[int, int], PathwisePart] | None = None

    def part(self, start: int, groups: int) -> "MiniBatch":
        """Return groups `start` to `start + groups - 1`."""
        k = self.advantages_GK.shape[1]
        rows, chosen = slice(start * k, (start + groups) * k), slice(start, start + groups)
        return replace(
            self,
            sequences=self.sequences[rows],
            advantages_GK=self.advantages_GK[chosen],
            old_logprobs_NT=self.old_logprobs_NT[rows],
            rewards_GK=self.rewards_GK[chosen] if self.rewards_GK is not None else None,
            kept_GK=self.kept_GK[chosen] if self.kept_GK is not None else None,
            engine_logprobs_NT=self.engine_logprobs_NT[rows] if self.engine_logprobs_NT is not None else None,
            rollouts=self.rollouts[rows],
        )

    def embedding_pass(self, forward: ForwardPass) -> EmbeddingPass:
        """Return a forward over `sequences`, with the rollouts that they come from."""
        return EmbeddingPass([self.rollouts[row] for row in forward.batch.indices], forward.embeddings)

    def counted(self) -> Tensor:
        """Return the tokens that count in the loss and its denominator, bool in the shape of `old_logprobs_NT`."""
        device = self.old_logprobs_NT.device
        lengths_N = torch.tensor([len(sequence.completion_ids) for sequence in self.sequences], device=device)
        mask_NT = torch.arange(self.old_logprobs_NT.shape[1], device=device) < lengths_N[:, None]
        return counted_tokens(
            mask_NT, self.kept_GK.flatten() if self.kept_GK is not None else None, self.engine_logprobs_NT
        )

    def counts(self) -> Tensor:
        """Return the numbers of counted tokens and of rationales with one, float32 [2], to be summed over processes."""
        return counts(self.counted())


def accumulate_gradients(
    policy: Policy,
    reference: Reference | None,
    mini_batch: MiniBatch,
    config: ObjectiveConfig,
    *,
    token_budget: int,
    divisor: float,
    backward: Callable[[Tensor, bool], None],
    pathwise: PathwisePart | None = None,
    policy_gradient: PolicyGradient | None = None,
) -> dict[str, Tensor]:
    """Run forward and backward over the mini-batch, one micro-batch at a time.

    Args:
        policy: The policy, in training mode.
        reference: The reference model, for the KL penalty; None: no penalty.
        mini_batch: This process's share.
        config: The objective.
        token_budget: Token budget of a micro-batch.
        divisor: Number by which the summed loss is divided: `aggregate.denominator` over all processes, divided by
            their number, because gradients are averaged over processes.
        backward: Called with each micro-batch's loss and whether it is the last.
        pathwise: The pathwise part, added to the policy gradient's loss; its own micro-batches come first.
        policy_gradient: Called with the loss of the policy gradient alone, before its backward.

    Returns:
        Sums of the objective's metrics over this process's counted tokens, and `loss`, all detached.
    """
    if config.policy_gradient_weight == 0:
        assert pathwise is not None
        return _pathwise_alone(policy, mini_batch, pathwise, token_budget, backward)
    if pathwise is not None:
        for other in pathwise.other_passes(policy, token_budget)[0]:
            backward(pathwise.loss(other), False)
    algorithm = ALGORITHMS[config.algorithm]
    advantages_N, totals = mini_batch.advantages_GK.flatten(), dict[str, Tensor]()
    if algorithm.refresh is not None:
        assert mini_batch.rewards_GK is not None
        log_ratios_GK = _log_ratios(policy, reference, mini_batch, config).view(mini_batch.rewards_GK.shape)
        kept_GK = mini_batch.kept_GK
        if kept_GK is None:
            kept_GK = torch.ones_like(log_ratios_GK, dtype=torch.bool)
        advantages_N = algorithm.refresh(mini_batch.rewards_GK, log_ratios_GK, kept_GK, config).flatten()
        totals["kl_reference"] = log_ratios_GK.sum()
    penalised = reference if config.kl.coefficient > 0 and config.kl.placement == "loss" else None
    passes, count = _passes(policy, mini_batch, config, pathwise, token_budget)
    for number, forward in enumerate(passes, start=1):
        batch = forward.batch
        if not batch.indices:  # another process has one micro-batch more
            if penalised is not None:
                penalised(batch)
            backward(forward.logprobs_P.sum(), number == count)
            continue
        logprobs_NT, mask_NT = batch.ragged(forward.logprobs_P)
        width = logprobs_NT.shape[1]
        rows_N = torch.tensor(batch.indices, device=logprobs_NT.device)
        inputs = LossInputs(
            logprobs_NT=logprobs_NT,
            old_logprobs_NT=mini_batch.old_logprobs_NT[rows_N, :width],
            advantages_N=advantages_N[rows_N],
            mask_NT=mask_NT,
            reference_logprobs_NT=batch.ragged(penalised(batch))[0] if penalised is not None else None,
            engine_logprobs_NT=_rows(mini_batch.engine_logprobs_NT, rows_N, width),
            entropy_NT=batch.ragged(forward.entropy_P)[0] if forward.entropy_P is not None else None,
            kept_N=mini_batch.kept_GK.flatten()[rows_N] if mini_batch.kept_GK is not None else None,
        )
        summed, metrics = algorithm.loss(inputs, config)
        loss = summed / divisor
        if config.policy_gradient_weight != 1:
            loss = loss * config.policy_gradient_weight
        if policy_gradient is not None:
            policy_gradient.add(loss)
        if pathwise is not None:
            loss = loss + pathwise.loss(mini_batch.embedding_pass(forward))
        backward(loss, number == count)
        for name, value in (("loss", summed.detach()), *metrics.items()):
            totals[name] = totals.get(name, torch.zeros_like(value)) + value
    return totals


def first_nonfinite(named: Iterable[tuple[str, Tensor | None]]) -> str | None:
    """Return the name of the first tensor that holds nan or inf."""
    return next((name for name, value in named if value is not None and not bool(torch.isfinite(value).all())), None)


def _passes(
    policy: Policy, mini_batch: MiniBatch, config: ObjectiveConfig, pathwise: PathwisePart | None, token_budget: int
) -> tuple[Iterable[ForwardPass] | Iterator[ForwardPass], int]:
    if mini_batch.forwards:
        return mini_batch.forwards, len(mini_batch.forwards)
    plan = policy.plan(mini_batch.sequences, token_budget)
    entropy = config.entropy_coefficient > 0
    if pathwise is None:
        return policy.planned_passes(mini_batch.sequences, plan, entropy=entropy), len(plan)
    passes = policy.planned_passes(
        mini_batch.sequences,
        plan,
        pathwise.regions,
        embedding_gradients=True,
        entropy=entropy,
        states=pathwise.states,
    )
    return passes, len(plan)


def _pathwise_alone(
    policy: Policy,
    mini_batch: MiniBatch,
    pathwise: PathwisePart,
    token_budget: int,
    backward: Callable[[Tensor, bool], None],
) -> dict[str, Tensor]:
    """Do the work of `accumulate_gradients` without a policy loss; the output head is not computed."""
    others, count = pathwise.other_passes(policy, token_budget)
    trained: Iterable[EmbeddingPass] = map(mini_batch.embedding_pass, mini_batch.forwards)
    more = len(mini_batch.forwards)
    if not more:
        trained, more = pathwise.trained_passes(policy, mini_batch.rollouts, token_budget)
    for number, forward in enumerate(chain(others, trained), start=1):
        backward(pathwise.loss(forward), number == count + more)
    return {"loss": mini_batch.advantages_GK.new_zeros(())}


def _log_ratios(policy: Policy, reference: Reference | None, mini_batch: MiniBatch, config: ObjectiveConfig) -> Tensor:
    """Return log (present / anchor probability) of each rationale's counted tokens, [n]; zeros without a penalty."""
    old_NT = mini_batch.old_logprobs_NT
    if config.kl.coefficient == 0:
        return old_NT.new_zeros(len(old_NT))
    sequences, forwards = mini_batch.sequences, mini_batch.forwards
    present_NT = collect(sequences, forwards).logprobs_NT if forwards else policy.score(sequences).logprobs_NT
    anchor_NT = old_NT
    if config.kl.anchor == "reference":
        assert reference is not None
        anchor_NT = reference.score(sequences).logprobs_NT
    width = max(len(sequence.completion_ids) for sequence in sequences)
    difference_NT = present_NT[:, :width] - anchor_NT[:, :width]
    return torch.where(mini_batch.counted()[:, :width], difference_NT, 0.0).sum(dim=1)


def _rows(values_NT: Tensor | None, rows_N: Tensor, width: int) -> Tensor | None:
    return values_NT[rows_N, :width] if values_NT is not None else None
