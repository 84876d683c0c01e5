"""The policy's moving average, for rewards from an encoder that follows the policy slowly."""

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

    After every optimizer update: average = decay x average + (1 - decay) x weights; it starts at the initial weights.
    Its memory is one more copy of the weights that train (of the adapters alone, with LoRA), which change places with
    the policy's own while it embeds; there is no second model.
    """

    def __init__(self, policy: Policy, decay: float) -> None:
        """Follow `policy`, which has had no update yet.

        Args:
            policy: The model; held in a tuple so that it is not registered a second time.
            decay: What an update keeps of the average.
        """
        super().__init__()
        self._policy = (policy,)
        self._average = get_ema_multi_avg_fn(decay)
        # Parameters, so that they move with the module; without gradient, so that they are in no optimizer's hands.
        self.weights = nn.ParameterList(
            nn.Parameter(weight.detach().clone(), requires_grad=False) for weight in policy.trainable_parameters()
        )

    def share(self) -> None:
        """Hold this process's part only, as the policy does that has been sharded since."""
        for place, (average, parameter) in enumerate(
            zip(self.weights, self._policy[0].trainable_parameters(), strict=True)
        ):
            self.weights[place] = nn.Parameter(part_of(average.detach(), parameter), requires_grad=False)

    def update(self) -> None:
        """Take in the weights after an optimizer update."""
        self._average(_local(self.weights), _local(self._policy[0].trainable_parameters()), None)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The average, whole; all processes call it."""
        return {name: whole(value) for name, value in super().state_dict(*args, **kwargs).items()}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Take over what `state_dict` gave, however many processes there were."""
        averages = dict(self.named_parameters())
        parts = {name: part_of(value, averages[name]) for name, value in state_dict.items()}
        return super().load_state_dict(parts, strict, assign)

    @torch.no_grad()
    def embed(self, sequences: Sequence[TextSequence], regions: Sequence[Region] = ()) -> dict[Region, Tensor]:
        """As `Policy.embed`."""
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
        """Change the values themselves: FSDP gathers from the storage that it has made, whatever `data` is."""
        pairs = zip(_local(self._policy[0].trainable_parameters()), _local(self.weights), strict=True)
        for weight, average in pairs:
            present = weight.clone()
            weight.copy_(average)
            average.copy_(present)


def _local(weights: Iterable[Tensor]) -> list[Tensor]:
    """This process's parts, in their own storage."""
    return [local_part(weight.detach()) for weight in weights]
