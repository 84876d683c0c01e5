"""How large the two parts of the gradient are, and how far they point the same way."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from grace_exp.config.objective import ObjectiveConfig


class PolicyGradient:
    """The policy-gradient part of an update's gradient, kept apart from the whole.

    It costs a second backward pass through the trained rationales and a copy of the gradient; the pathwise part is what
    the whole has beside it.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        """Start an update.

        Args:
            parameters: Those that train.
        """
        self._parameters = parameters
        self._gradients: list[Tensor | None] = [None] * len(parameters)

    def add(self, loss: Tensor) -> None:
        """Add the gradient of a micro-batch's policy loss, whose graph stays for the backward of the whole loss."""
        found = torch.autograd.grad(loss, self._parameters, retain_graph=True, allow_unused=True)
        for place, (before, gradient) in enumerate(zip(self._gradients, found, strict=True)):
            if gradient is not None:
                self._gradients[place] = gradient if before is None else before.add_(gradient)

    def metrics(self, mean: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Figures of the update, after its last backward and before clipping.

        Args:
            mean: Over processes, as the gradients themselves are averaged.

        Returns:
            `policy_gradient_norm`, `pathwise_norm`, and `gradient_cosine` of the two; 0 where one of them is zero.
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
    """Keeps the policy gradient apart in the steps that measure both parts; None in others, and where there is one."""
    every = objective.pathwise.parts_every_n_steps
    both = objective.pathwise.weight > 0 and objective.policy_gradient_weight > 0
    return PolicyGradient(parameters) if both and every is not None and step % every == 0 else None
