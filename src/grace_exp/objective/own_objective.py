"""An objective that the user writes: advantages, a loss, or both; GRPO's replace what is not given."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from grace_exp.config.objective import CustomObjectiveConfig, ObjectiveConfig
from grace_exp.config.own_parts import OwnPart
from grace_exp.errors import GraceError
from grace_exp.objective.advantage import group_relative
from grace_exp.objective.loss_inputs import AdvantageInputs, Algorithm, LossInputs
from grace_exp.objective.surrogate import clipped_loss


class CustomObjectiveError(GraceError):
    """A user's function returned something that is not an advantage or a loss."""


def custom_advantages(inputs: AdvantageInputs, config: ObjectiveConfig) -> Tensor:
    """Return the advantages of the user's function, checked; GRPO's without one.

    Args:
        inputs: All groups of the step.
        config: `custom.advantages` names the function: from `inputs, config` to `[groups, K]`.

    Returns:
        `[groups, K]`, 0 where not kept.

    Raises:
        ConfigError: There is no such function.
        CustomObjectiveError: It did not return a tensor of this shape, or values are nan or inf.
    """
    custom = _custom(config)
    if custom.advantages is None:
        return group_relative(inputs, config)
    values_GK = _function(custom, custom.advantages)(inputs, config)
    where = f"objective.custom ({custom.path}: {custom.advantages})"
    expected = tuple(inputs.rewards_GK.shape)
    if not isinstance(values_GK, Tensor) or tuple(values_GK.shape) != expected:
        found = tuple(values_GK.shape) if isinstance(values_GK, Tensor) else type(values_GK).__name__
        raise CustomObjectiveError(
            f"{where} gave {found}; it must give one advantage for each rationale, a torch.Tensor [groups, K] = "
            f"{expected}"
        )
    values_GK = torch.where(inputs.kept_GK, values_GK, 0.0)
    if not torch.isfinite(values_GK).all():
        group, k = (~torch.isfinite(values_GK)).nonzero()[0].tolist()
        raise CustomObjectiveError(f"{where} gave {values_GK[group, k].item()} for rationale {k} of group {group}")
    return values_GK.to(inputs.rewards_GK.dtype)


def custom_loss(inputs: LossInputs, config: ObjectiveConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of the user's function, checked; GRPO's without one.

    Args:
        inputs: One micro-batch.
        config: `custom.loss` names the function: from `inputs, config` to the loss summed over the counted tokens, and
            metrics summed over them.

    Returns:
        Loss and metrics. The update reports a loss of nan or inf, as for any algorithm.

    Raises:
        ConfigError: There is no such function.
        CustomObjectiveError: It returned something else.
    """
    custom = _custom(config)
    if custom.loss is None:
        return clipped_loss(inputs, config)
    given = _function(custom, custom.loss)(inputs, config)
    where = f"objective.custom ({custom.path}: {custom.loss})"
    if not (isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], Tensor) and given[0].ndim == 0):
        raise CustomObjectiveError(
            f"{where} gave {type(given).__name__}; it must give a scalar torch.Tensor, summed over the counted tokens, "
            "and a dict of metrics: return loss, {}"
        )
    loss, metrics = given
    if inputs.logprobs_NT.requires_grad and not loss.requires_grad:
        raise CustomObjectiveError(f"{where} gave a loss without gradient: compute it from inputs.logprobs_NT")
    return loss, {name: torch.as_tensor(value).detach() for name, value in dict(metrics).items()}


def try_custom_objective(config: ObjectiveConfig, max_tokens: int) -> None:
    """Calls the functions once with made-up rationales, before any model loads.

    Raises:
        ConfigError: There is no such function.
        CustomObjectiveError: They returned something unusable, or raised.
    """
    custom, draw = _custom(config), torch.Generator().manual_seed(0)
    groups, samples, tokens = 3, 4, 5
    rewards = torch.randn(groups, samples, generator=draw)
    lengths, kept = torch.full((groups, samples), tokens), torch.ones(groups, samples, dtype=torch.bool)
    logprobs = -torch.rand(groups * samples, tokens, generator=draw)
    try:
        advantages = custom_advantages(AdvantageInputs(rewards, kept, lengths, max_tokens), config)
        custom_loss(
            LossInputs(
                logprobs_NT=logprobs.requires_grad_(),
                old_logprobs_NT=logprobs.detach(),
                advantages_N=advantages.flatten(),
                mask_NT=torch.ones_like(logprobs, dtype=torch.bool),
            ),
            config,
        )
    except GraceError:
        raise
    except Exception as error:  # the user's functions may raise anything
        raise CustomObjectiveError(
            f"objective.custom ({custom.path}) raised {type(error).__name__}: {error} when it was tried with made-up "
            f"rationales of {groups} groups, K = {samples}"
        ) from error


def _custom(config: ObjectiveConfig) -> CustomObjectiveConfig:
    assert config.custom is not None  # checked by ObjectiveConfig
    return config.custom


def _function(custom: CustomObjectiveConfig, name: str) -> Callable[..., Any]:
    return OwnPart("objective.custom", custom.path, name, ("inputs", "config")).load()


ALGORITHM = Algorithm(advantages=custom_advantages, loss=custom_loss)
