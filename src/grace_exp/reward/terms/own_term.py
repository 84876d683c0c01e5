"""A term that the user writes."""

import torch
from torch import Tensor

from grace_exp.config.own_parts import OwnPart
from grace_exp.config.reward import CustomConfig
from grace_exp.errors import GraceError
from grace_exp.reward.inputs import RewardInputs


class CustomTermError(GraceError):
    """A user's term returned something that is not a reward."""


def custom_term(inputs: RewardInputs, config: CustomConfig) -> Tensor:
    """Return the values of the user's function, checked.

    Args:
        inputs: Embeddings.
        config: Names the function: from `inputs` to values `[groups, K]`, where more is better.

    Returns:
        `[groups, K]` float64.

    Raises:
        ConfigError: There is no such function.
        CustomTermError: It did not return a tensor of this shape, or values are nan or inf.
    """
    part = OwnPart("reward.terms.custom", config.path, config.name, ("inputs",))
    values_GK = part.load()(inputs)
    where = f"reward.terms.custom ({config.path}: {config.name})"
    if not isinstance(values_GK, Tensor):
        raise CustomTermError(
            f"{where} gave {type(values_GK).__name__}; it must give a torch.Tensor of shape [groups, K]"
        )
    expected = tuple(inputs.truncated_GK.shape)
    if tuple(values_GK.shape) != expected:
        raise CustomTermError(
            f"{where} gave the shape {tuple(values_GK.shape)}; it must give one value for each rationale, "
            f"[groups, K] = {expected}"
        )
    bad_GK = ~torch.isfinite(values_GK)
    if bad_GK.any():
        group, k = bad_GK.nonzero()[0].tolist()
        raise CustomTermError(
            f"{where} gave {values_GK[group, k].item()} for rationale {k} of group {group} "
            f"({int(bad_GK.sum())} of {bad_GK.numel()} values are not finite)"
        )
    return values_GK.double()


def try_custom_term(config: CustomConfig) -> None:
    """Calls the function once with random embeddings, before any model loads.

    Raises:
        ConfigError: There is no such function.
        CustomTermError: It returned something unusable, or raised.
    """
    draw = torch.Generator().manual_seed(0)
    groups, samples, hidden = 3, 4, 8

    def vectors(*shape: int) -> Tensor:
        return torch.randn(*shape, hidden, generator=draw)

    inputs = RewardInputs(
        rollouts_GKH=vectors(groups, samples),
        anchors_GAH=vectors(groups, 1),
        negatives_GMH=vectors(groups, 1),
        truncated_GK=torch.zeros(groups, samples, dtype=torch.bool),
        lengths_GK=torch.full((groups, samples), 5),
        max_tokens=16,
        well_formed_GK=torch.ones(groups, samples),
        swapped_GKH=vectors(groups, samples),
        swapped_from_G=torch.tensor([1, 2, 0]),
        bare_GH=vectors(groups),
    )
    try:
        custom_term(inputs, config)
    except GraceError:
        raise
    except Exception as error:  # the user's function may raise anything
        raise CustomTermError(
            f"reward.terms.custom ({config.path}: {config.name}) raised {type(error).__name__}: {error} when it was "
            f"tried with random embeddings of {groups} groups, K = {samples}"
        ) from error
