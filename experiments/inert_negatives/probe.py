"""Compare rewards, advantages and gradients of the untrained policy with real and with random negatives.

For every instance the probe replaces everything that the reward treats as negative by random vectors: its own
negatives, and the queries and rationales of the other instances. If the negatives of a reward matter, the gradient
changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from grace_exp.config.compose import compose_config
from grace_exp.config.reward import RewardConfig
from grace_exp.config.root import GraceConfig
from grace_exp.data.datamodule import GraceDataModule
from grace_exp.data.recipes import load_recipe
from grace_exp.jobs.assemble import assemble
from grace_exp.objective.advantage import group_centred
from grace_exp.policy.forward_pass import ForwardPass, collect
from grace_exp.policy.policy import Policy
from grace_exp.reward.composer import compose_reward
from grace_exp.reward.inputs import RewardInputs
from grace_exp.training.step.rollouts import write_rollouts


@dataclass(frozen=True)
class Probe:
    """One reward on one batch.

    Attributes:
        reward: Name of the reward.
        batch: Number of the batch.
        reward_change: Largest change of a reward when the negatives become random.
        advantage_change: Largest change of an advantage (rewards less their group's mean).
        advantage_size: Root mean square of the advantages with the real negatives.
        gradient_change: |g_random - g| / |g|, of the policy gradient over all trained weights.
        gradient_cosine: Cosine of the two gradients.
    """

    reward: str
    batch: int
    reward_change: float
    advantage_change: float
    advantage_size: float
    gradient_change: float
    gradient_cosine: float


def probe(overrides: Sequence[str], rewards: Sequence[str], batches: int) -> list[Probe]:
    """Write the rationales of the first steps once, and evaluate them with every reward.

    Args:
        overrides: Overrides of the settings, e.g. `["+experiment=demo"]`.
        rewards: Choices of the group `reward`.
        batches: Number of steps.
    """
    config = compose_config([*overrides, f"job.steps={batches}"], Path("runs/probe"))
    chosen = {
        name: replace(
            compose_config([*overrides, f"reward={name}"], Path("runs/probe")).reward,
            truncation=config.reward.truncation,
        )
        for name in rewards
    }
    recipe = load_recipe(config.data, seed=config.seed, cache_dir=Path(config.cache_dir), rejects_path=None)
    data = GraceDataModule(recipe, batch_size=config.job.batch_size, steps=batches)
    module = assemble(config, lambda step, rows: None).module
    policy: Policy = module.policy
    found = []
    for number in range(batches):
        rollouts = write_rollouts(data.batch(number), module.engine, module.prompts, config.rollout, config.seed)
        trained = [rollout.sequence() for rollout in rollouts.group]
        passes = list(policy.passes(trained, config.hardware.train_budget, (config.backbone.pooling.region,)))
        embeddings = collect(trained, passes).embeddings[config.backbone.pooling.region]
        others = policy.embed([rollout.sequence() for rollout in rollouts.others()])[config.backbone.pooling.region]
        inputs = _inputs(config, embeddings, others)
        found += [_compare(inputs, reward, policy, passes, number) for reward in chosen.values()]
    return found


def _inputs(config: GraceConfig, embeddings: Tensor, others: Tensor) -> RewardInputs:
    groups, k = config.job.batch_size, config.rollout.group_size
    anchors, negatives = others[:groups], others[groups:]
    return RewardInputs(
        rollouts_GKH=embeddings.view(groups, k, -1),
        anchors_GAH=anchors[:, None],
        negatives_GMH=negatives.view(groups, -1, anchors.shape[1]),
        truncated_GK=torch.zeros(groups, k, dtype=torch.bool),
        lengths_GK=torch.full((groups, k), config.rollout.max_tokens),
    )


def _compare(
    inputs: RewardInputs, reward: RewardConfig, policy: Policy, passes: Sequence[ForwardPass], number: int
) -> Probe:
    real = compose_reward(inputs, reward).final_GK.double()
    generator = torch.Generator().manual_seed(number)
    random = torch.stack(
        [compose_reward(_random_but(inputs, group, generator), reward).final_GK[group] for group in range(len(real))]
    ).double()
    everything = torch.ones_like(real, dtype=torch.bool)
    advantages, changed = (group_centred(values, everything) for values in (real, random))
    gradient, other = (_policy_gradient(policy, passes, values.flatten().float()) for values in (advantages, changed))
    return Probe(
        reward=reward.name,
        batch=number,
        reward_change=(random - real).abs().max().item(),
        advantage_change=(changed - advantages).abs().max().item(),
        advantage_size=advantages.square().mean().sqrt().item(),
        gradient_change=((other - gradient).norm() / gradient.norm()).item(),
        gradient_cosine=torch.nn.functional.cosine_similarity(gradient, other, dim=0).item(),
    )


def _random_but(inputs: RewardInputs, group: int, generator: torch.Generator) -> RewardInputs:
    """Return the inputs with random vectors for everything except the rationales and the anchor of one group."""
    rollouts, anchors = (
        torch.randn(values.shape, generator=generator).index_copy_(0, torch.tensor([group]), values[group][None])
        for values in (inputs.rollouts_GKH, inputs.anchors_GAH)
    )
    assert inputs.negatives_GMH is not None
    negatives = torch.randn(inputs.negatives_GMH.shape, generator=generator)
    return replace(inputs, rollouts_GKH=rollouts, anchors_GAH=anchors, negatives_GMH=negatives)


def _policy_gradient(policy: Policy, passes: Sequence[ForwardPass], advantages: Tensor) -> Tensor:
    """Return the gradient of -sum(advantage x log-prob) over all trained weights, flat."""
    loss = -sum(
        (forward.logprobs_P * advantages[torch.tensor(forward.batch.indices)][forward.batch.owners_P]).sum()
        for forward in passes
    )
    assert isinstance(loss, Tensor)
    gradients = torch.autograd.grad(loss, policy.trainable_parameters(), retain_graph=True)
    return torch.cat([gradient.flatten().double() for gradient in gradients])
