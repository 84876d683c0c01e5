"""One call to the engine for a whole step, and where each answer belongs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grace_exp.config.rollout import RolloutConfig
from grace_exp.data.batch import Instance, Role, TextBatch
from grace_exp.data.prompts import Prompt, PromptBuilder
from grace_exp.policy.packing import TextSequence
from grace_exp.reward.inputs import RewardInputs
from grace_exp.rollout.protocol import Completion, Request, RolloutEngine, derive_seed


@dataclass(frozen=True, slots=True)
class Rollout:
    """A rationale with its origin."""

    instance: Instance
    role: Role
    text: str
    prompt: Prompt
    completion: Completion
    temperature: float

    def sequence(self) -> TextSequence:
        """What the policy scores."""
        return TextSequence(self.prompt, self.completion.token_ids, self.temperature)


@dataclass(frozen=True)
class Rollouts:
    """The rationales of a step on this process, groups carried by position.

    Attributes:
        group: The K rationales of instance i stand at i*K .. i*K + K-1.
        queries: One anchor per instance.
        negatives: M anchors per instance, instance by instance.
        group_size: K.
    """

    group: list[Rollout]
    queries: list[Rollout]
    negatives: list[Rollout]
    group_size: int

    def all(self) -> list[Rollout]:
        """Group, queries, negatives: the order that `reward_inputs` expects of the embeddings."""
        return [*self.group, *self.queries, *self.negatives]

    def prompts_cut(self) -> Tensor:
        """Number of this process's texts that were too long for their prompt, float64 []."""
        texts = {(r.instance.index, r.role, r.text) for r in self.all() if r.prompt.text_tokens_cut}
        return torch.tensor(len(texts), dtype=torch.float64)

    def reward_inputs(self, embeddings: Tensor, gather: Callable[[Tensor], Tensor]) -> RewardInputs:
        """Rewards are computed on the instances of all processes, so that their number changes nothing.

        Args:
            embeddings: [len(all()), hidden] float32 in the order of `all()`.
            gather: Concatenates a tensor over processes along its first dimension, in rank order.
        """
        instances, k = len(self.queries), self.group_size
        group, queries, negatives = embeddings.split([len(self.group), len(self.queries), len(self.negatives)])
        device = embeddings.device
        truncated = torch.tensor([rollout.completion.truncated for rollout in self.group], device=device)
        lengths = torch.tensor([len(rollout.completion.token_ids) for rollout in self.group], device=device)
        return RewardInputs(
            rollouts=gather(group.view(instances, k, -1)),
            queries=gather(queries),
            negatives=gather(negatives.view(instances, -1, embeddings.shape[1])) if len(negatives) else None,
            truncated=gather(truncated.view(instances, k)),
            lengths=gather(lengths.view(instances, k)),
        )


def write_rollouts(
    batch: TextBatch, engine: RolloutEngine, prompts: PromptBuilder, config: RolloutConfig, seed: int
) -> Rollouts:
    """Ask the engine for every rationale of the step in one call.

    Seeds derive from (run seed, step, role, instance), not from the process or the place in the batch.
    """
    wanted: list[tuple[Instance, Role, str, int]] = []
    for instance in batch.instances:
        wanted.append((instance, Role.POSITIVE, instance.positive, 0))
    for instance in batch.instances:
        wanted.append((instance, Role.QUERY, instance.query, 0))
    for instance in batch.instances:
        wanted += [(instance, Role.NEGATIVE, text, number) for number, text in enumerate(instance.negatives)]

    texts = prompts.many((role, text) for _, role, text, _ in wanted)
    requests = [
        Request(
            prompt_ids=prompt.token_ids,
            n=config.group_size if role is Role.POSITIVE else 1,
            max_tokens=config.max_tokens,
            temperature=config.temperature if role is Role.POSITIVE else config.anchor_temperature,
            seed=derive_seed(seed, batch.step, role, instance.index, number),
        )
        for (instance, role, _, number), prompt in zip(wanted, texts, strict=True)
    ]
    answers = engine.generate(requests)
    found: dict[Role, list[Rollout]] = {role: [] for role in Role}
    for (instance, role, text, _), prompt, request, completions in zip(wanted, texts, requests, answers, strict=True):
        found[role] += [
            Rollout(instance, role, text, prompt, completion, request.temperature) for completion in completions
        ]
    return Rollouts(found[Role.POSITIVE], found[Role.QUERY], found[Role.NEGATIVE], config.group_size)


def rollout_metrics(inputs: RewardInputs) -> dict[str, float]:
    """`rollout/*`: what was written, over all processes."""
    lengths = inputs.lengths.double()
    return {
        "rollout/tokens_mean": lengths.mean().item(),
        "rollout/tokens_max": lengths.max().item(),
        "rollout/truncated_share": inputs.truncated.double().mean().item(),
    }


def sample_rows(
    rollouts: Rollouts, figures: dict[str, Tensor], decode: Callable[[Sequence[int]], str], limit: int
) -> list[dict[str, object]]:
    """Rows of the samples table: whole groups first, then the anchors of the same instances.

    Args:
        rollouts: This process's rollouts.
        figures: Per group rollout, each [instances, K].
        decode: Token ids to text, for reading only.
        limit: At most this many group rollouts.
    """
    k = rollouts.group_size
    groups = max(1, limit // k)
    chosen = rollouts.group[: groups * k]
    instances = {rollout.instance.index for rollout in chosen}
    anchors = [r for r in (*rollouts.queries, *rollouts.negatives) if r.instance.index in instances]
    flat = {name: values.flatten().tolist() for name, values in figures.items()}
    rows = []
    for number, rollout in enumerate([*chosen, *anchors]):
        row: dict[str, object] = {
            "instance": rollout.instance.index,
            "source": rollout.instance.source,
            "role": rollout.role.value,
            "text": rollout.text,
            "prompt_tokens": len(rollout.prompt.token_ids),
            "rationale": decode(rollout.completion.token_ids),
            "rationale_tokens": len(rollout.completion.token_ids),
            "finish_reason": rollout.completion.finish_reason,
        }
        if number < len(chosen):
            row |= {name: values[number] for name, values in flat.items()}
        rows.append(row)
    return rows


def mismatch_metrics(rollouts: Rollouts, logprobs: Tensor, mask: Tensor) -> dict[str, float]:
    """`mismatch/*`: how far the engine's log-probs of the group's tokens are from the trainer's, on this process.

    Args:
        rollouts: With the engine's log-probs.
        logprobs: The trainer's, [group rollouts, longest].
        mask: Real tokens, [group rollouts, longest].
    """
    engine = torch.tensor([value for rollout in rollouts.group for value in rollout.completion.logprobs])
    difference = logprobs[mask].double().cpu() - engine.double()
    return {
        "mismatch/logprob_abs_mean": difference.abs().mean().item(),
        "mismatch/logprob_abs_max": difference.abs().max().item(),
        "mismatch/k3": (difference.exp() - 1 - difference).mean().item(),
    }
