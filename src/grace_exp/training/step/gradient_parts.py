"""Measure the norms of the two parts of the gradient, and their cosine."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from grace_exp.config.objective import ObjectiveConfig


class PolicyGradient:
    """The policy-gradient part of an update's gradient, stored separately.

    It costs a second backward pass through the trained rationales and a copy of the gradient. The pathwise part is the
    whole gradient minus this part.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        """Start an update without gradient.

        Args:
            parameters: The trained parameters.
        """
        self._parameters = parameters
        self._gradients: list[Tensor | None] = [None] * len(parameters)

    def add(self, loss: Tensor) -> None:
        """Add the gradient of a micro-batch's policy loss; the graph is kept for the backward of the whole loss."""
        found = torch.autograd.grad(loss, self._parameters, retain_graph=True, allow_unused=True)
        for place, (before, gradient) in enumerate(zip(self._gradients, found, strict=True)):
            if gradient is not None:
                self._gradients[place] = gradient if before is None else before.add_(gradient)

    def metrics(self, mean: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Return the metrics of the update, after its last backward and before clipping.

        Args:
            mean: Returns the mean over processes; gradients are averaged in the same way.

        Returns:
            `policy_gradient_norm`, `pathwise_norm`, and the `gradient_cosine` of the two; 0 if one of them is zero.
        """
        policy = whole = product = torch.zeros((), dtype=torch.float64)
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            if parameter.grad is None:
                continue
            total = parameter.grad
            part = mean(gradient if gradient is not None else torch.zeros_like(total))
            policy = policy + part.double().square().sum().cpu()
            whole = whole + (total - part).double().square().sum().cpu()
            product = product + (part.double() * (total - part).double()).sum().cpu()
        norms = policy.sqrt(), whole.sqrt()
        cosine = product / (norms[0] * norms[1]) if norms[0] * norms[1] > 0 else torch.zeros(())
        return {
            "policy_gradient_norm": norms[0].item(),
            "pathwise_norm": norms[1].item(),
            "gradient_cosine": cosine.item(),
        }


def policy_gradient(objective: ObjectiveConfig, step: int, parameters: Sequence[nn.Parameter]) -> PolicyGradient | None:
    """Return a `PolicyGradient` in steps that measure both parts; None in others, and if there is only one part."""
    every = objective.pathwise.parts_every_n_steps
    both = objective.pathwise.weight > 0 and objective.policy_gradient_weight > 0
    return PolicyGradient(parameters) if both and every is not None and step % every == 0 else None
