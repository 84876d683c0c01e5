"""Random reward inputs."""

from collections.abc import Callable

import pytest
import torch

from grace_exp.reward.inputs import RewardInputs


@pytest.fixture
def make_inputs() -> Callable[..., RewardInputs]:
    """Draws embeddings with a shared direction and per-group centres, as a language model's are."""

    def make(groups: int = 4, samples: int = 3, negatives: int | None = 1, seed: int = 0) -> RewardInputs:
        draw = torch.Generator().manual_seed(seed)
        hidden = 12

        def noise(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=draw)

        centre = noise(hidden) + noise(groups, 1, hidden)
        return RewardInputs(
            rollouts=centre + 0.5 * noise(groups, samples, hidden),
            queries=(centre + 0.5 * noise(groups, 1, hidden)).squeeze(1),
            negatives=None if negatives is None else centre + noise(groups, negatives, hidden),
            truncated=torch.rand(groups, samples, generator=draw) < 0.3,
            lengths=torch.randint(1, 20, (groups, samples), generator=draw),
        )

    return make
