"""One optimizer update from scored rollouts."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grace_exp.config.objective import ObjectiveConfig
from grace_exp.objective import LOSSES
from grace_exp.objective.inputs import LossInputs
from grace_exp.policy.packing import TextSequence
from grace_exp.policy.policy import ForwardPass, Policy
from grace_exp.policy.reference import Reference


@dataclass(frozen=True)
class MiniBatch:
    """What an update is made from.

    Attributes:
        sequences: The rollouts trained on.
        advantages: [n].
        old_logprobs: Under the policy before this step's first update, [n, longest].
        kept: Forwards of the sequences that were made with gradients already; empty: they are made for the update.
    """

    sequences: Sequence[TextSequence]
    advantages: Tensor
    old_logprobs: Tensor
    kept: Sequence[ForwardPass] = ()


def accumulate_gradients(
    policy: Policy,
    reference: Reference | None,
    mini_batch: MiniBatch,
    config: ObjectiveConfig,
    *,
    token_budget: int,
    tokens: float,
    backward: Callable[[Tensor, bool], None],
) -> dict[str, Tensor]:
    """Forward and backward over the mini-batch, a micro-batch at a time.

    Args:
        policy: In training mode.
        reference: For the KL penalty, or None.
        mini_batch: This process's share.
        config: The objective.
        token_budget: Of a micro-batch.
        tokens: What the summed loss is divided by: the tokens of the mini-batch over all processes, divided by their
            number, since gradients are averaged over processes.
        backward: Called with each micro-batch's loss and whether it is the last.

    Returns:
        The objective's metrics as sums over this process's tokens, and `loss`, all detached.
    """
    loss_function = LOSSES[config.name]
    totals: dict[str, Tensor] = {}
    passes = mini_batch.kept or policy.passes(mini_batch.sequences, token_budget)
    count = len(mini_batch.kept or policy.plan(mini_batch.sequences, token_budget))
    for number, forward in enumerate(passes, start=1):
        batch = forward.batch
        logprobs, mask = batch.ragged(forward.logprobs)
        width = logprobs.shape[1]
        rows = torch.tensor(batch.indices, device=logprobs.device)
        inputs = LossInputs(
            logprobs=logprobs,
            old_logprobs=mini_batch.old_logprobs[rows, :width],
            advantages=mini_batch.advantages[rows],
            mask=mask,
            reference_logprobs=batch.ragged(reference(batch))[0] if reference is not None else None,
        )
        summed, metrics = loss_function(inputs, config)
        backward(summed / tokens, number == count)
        for name, value in (("loss", summed.detach()), *metrics.items()):
            totals[name] = totals.get(name, torch.zeros_like(value)) + value
    return totals


def first_nonfinite(named: Iterable[tuple[str, Tensor | None]]) -> str | None:
    """Name of the first tensor that holds nan or inf."""
    return next((name for name, value in named if value is not None and not bool(torch.isfinite(value).all())), None)
