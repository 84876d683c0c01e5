"""Add your own reward term, in your own file.

python examples/own_reward_term.py runs/own_reward_term

The same from the command line:
  python -m grace_exp +experiment=demo \
      'reward.terms.custom={path: examples/own_reward_term.py, name: log_rank, weight: 0.5}'
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

from grace_exp.config.compose import compose_config
from grace_exp.jobs import run
from grace_exp.reward import RewardInputs


def log_rank(inputs: RewardInputs) -> Tensor:
    """Return minus the log of the own anchor's rank among all anchors, smoothed to have a gradient: [groups, K]."""
    cosines_GKG = inputs.rollouts_to_anchors_GKGA.mean(dim=-1)
    own_GK = inputs.rollouts_to_own_anchors_GKA.mean(dim=-1)
    rank_GK = torch.sigmoid((cosines_GKG - own_GK[..., None]) / 0.05).sum(dim=-1) + 0.5  # its own sigmoid is 0.5
    return -torch.log(rank_GK)


def main(folder: Path, *overrides: str) -> dict[str, float]:
    """Train with the term and the paper's terms; return the last step's figures, `reward/custom/*` among them."""
    settings = [
        "+experiment=demo_tiny",  # a tiny random model; `demo` trains SmolLM2
        f"reward.terms.custom={{path: {Path(__file__).resolve()}, name: log_rank, weight: 0.5}}",
        *overrides,
    ]
    return run(compose_config(settings, folder))


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), *sys.argv[2:]))
