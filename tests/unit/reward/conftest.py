"""Random reward inputs."""

from collections.abc import Callable
from typing import Literal

import pytest
import torch

from grace_exp.reward.inputs import RewardInputs


@pytest.fixture
def make_inputs() -> Callable[..., RewardInputs]:
    """Draws embeddings with a shared direction and per-group centres, as a language model's are."""

    def make(
        groups: int = 4,
        samples: int = 3,
        negatives: int | None = 1,
        anchors: int = 1,
        *,
        seed: int = 0,
        masked: bool = False,
        trained: Literal["positive", "query"] = "positive",
    ) -> RewardInputs:
        draw = torch.Generator().manual_seed(seed)
        hidden = 12

        def noise(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=draw)

        centre = noise(hidden) + noise(groups, 1, hidden)
        return RewardInputs(
            rollouts_GKH=centre + 0.5 * noise(groups, samples, hidden),
            anchors_GAH=centre + 0.5 * noise(groups, anchors, hidden),
            negatives_GMH=None if negatives is None else centre + noise(groups, negatives, hidden),
            truncated_GK=torch.rand(groups, samples, generator=draw) < 0.3,
            lengths_GK=torch.randint(1, 20, (groups, samples), generator=draw),
            negative_mask_GM=torch.rand(groups, negatives or 0, generator=draw) < 0.6 if masked else None,
            trained=trained,
            max_tokens=16,
            well_formed_GK=torch.randint(0, 5, (groups, samples), generator=draw) / 4,
            swapped_GKH=centre + 0.7 * noise(groups, samples, hidden) if groups > 1 else None,
            swapped_from_G=torch.arange(groups).roll(1) if groups > 1 else None,
            bare_GH=(centre + noise(groups, 1, hidden)).squeeze(1),
        )

    return make
