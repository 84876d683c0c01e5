"""The policy's moving average, for rewards from an encoder that follows the policy slowly."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from grace_exp.policy.packing import Region, TextSequence
from grace_exp.policy.policy import Policy


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

    def update(self) -> None:
        """Take in the weights after an optimizer update."""
        self._average(list(self.weights), self._policy[0].trainable_parameters(), None)

    @torch.no_grad()
    def embed(self, sequences: Sequence[TextSequence], regions: Sequence[Region] = ()) -> dict[Region, Tensor]:
        """As `Policy.embed`."""
        with self._in_place_of_the_policy():
            return self._policy[0].embed(sequences, regions)

    @contextmanager
    def _in_place_of_the_policy(self) -> Iterator[None]:
        weights = self._policy[0].trainable_parameters()
        present = [weight.data for weight in weights]
        for weight, average in zip(weights, self.weights, strict=True):
            weight.data = average.data
        try:
            yield
        finally:
            for weight, data in zip(weights, present, strict=True):
                weight.data = data
