"""The policy's moving average, which encodes texts for the reward and follows the policy slowly."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from grace_exp.policy.packing import Region, TextSequence
from grace_exp.policy.policy import Policy
from grace_exp.policy.sharding import local_part, part_of, whole


class MovingAverage(LightningModule):
    """Embeddings under the exponential moving average of the trained weights.

    After every optimizer update: average = decay x average + (1 - decay) x weights. The average starts at the initial
    weights. It takes the memory of one more copy of the trained weights (with LoRA of the adapters only). It is
    exchanged with the policy's own weights while it embeds; there is no second model.
    """

    def __init__(self, policy: Policy, decay: float) -> None:
        """Follow `policy`, which has had no update yet.

        Args:
            policy: The model; it is kept in a tuple so that it is not registered a second time.
            decay: Share of the average that an update keeps.
        """
        super().__init__()
        self._policy = (policy,)
        self._average = get_ema_multi_avg_fn(decay)
        # Parameters, so that they move with the module; without gradient, so that no optimizer updates them.
        self.weights = nn.ParameterList(
            nn.Parameter(weight.detach().clone(), requires_grad=False) for weight in policy.trainable_parameters()
        )

    def share(self) -> None:
        """Keep only this process's part, after the policy has been sharded."""
        for place, (average, parameter) in enumerate(
            zip(self.weights, self._policy[0].trainable_parameters(), strict=True)
        ):
            self.weights[place] = nn.Parameter(part_of(average.detach(), parameter), requires_grad=False)

    def update(self) -> None:
        """Update the average after an optimizer update."""
        self._average(_local(self.weights), _local(self._policy[0].trainable_parameters()), None)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return the whole average; all processes must call it."""
        return {name: whole(value) for name, value in super().state_dict(*args, **kwargs).items()}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Restore what `state_dict` returned, for any number of processes."""
        averages = dict(self.named_parameters())
        parts = {name: part_of(value, averages[name]) for name, value in state_dict.items()}
        return super().load_state_dict(parts, strict, assign)

    @torch.no_grad()
    def embed(self, sequences: Sequence[TextSequence], regions: Sequence[Region] = ()) -> dict[Region, Tensor]:
        """Return embeddings as `Policy.embed` does."""
        with self._in_place_of_the_policy():
            return self._policy[0].embed(sequences, regions)

    @contextmanager
    def _in_place_of_the_policy(self) -> Iterator[None]:
        if self._policy[0].sharded:
            self._exchange()
            try:
                yield
            finally:
                self._exchange()
            return
        weights = self._policy[0].trainable_parameters()
        present = [weight.data for weight in weights]
        for weight, average in zip(weights, self.weights, strict=True):
            weight.data = average.data
        try:
            yield
        finally:
            for weight, data in zip(weights, present, strict=True):
                weight.data = data

    def _exchange(self) -> None:
        """Exchange the values in their storage, because FSDP gathers from its own storage and ignores `data`."""
        pairs = zip(_local(self._policy[0].trainable_parameters()), _local(self.weights), strict=True)
        for weight, average in pairs:
            present = weight.clone()
            weight.copy_(average)
            average.copy_(present)


def _local(weights: Iterable[Tensor]) -> list[Tensor]:
    """Return this process's parts, in their own storage."""
    return [local_part(weight.detach()) for weight in weights]
