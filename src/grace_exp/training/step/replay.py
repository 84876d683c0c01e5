"""Instances of earlier steps with their rationales, stored to be trained on again (CoPG, arXiv 2406.19185)."""

import random
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from grace_exp.data.batch import Instance, Role
from grace_exp.data.prompts import Prompt
from grace_exp.rollout.protocol import Completion
from grace_exp.training.step.rollouts import InstanceRollouts, Rollout


class ReplayBuffer:
    """Stores the newest `capacity` instances with their rollouts.

    Every process must hold the same instances in the same order. Then any number of processes draws the same ones, and
    the first process's checkpoint is valid for all.
    """

    def __init__(self, capacity: int) -> None:
        """Start empty."""
        self._written: deque[InstanceRollouts] = deque(maxlen=capacity)

    def __len__(self) -> int:
        """Return the number of stored instances."""
        return len(self._written)

    def add(self, written: Iterable[InstanceRollouts]) -> None:
        """Append instances; beyond the capacity the oldest are dropped.

        Args:
            written: Instances with `behaviour`, whose tensors are on the CPU and own their storage.
        """
        self._written.extend(written)

    def draw(self, count: int, seed: int, *, without: Collection[int] = ()) -> list[InstanceRollouts]:
        """Draw at most `count` stored instances at random, each at most once and in its newest version.

        Args:
            count: Number of instances.
            seed: Seed of the draw.
            without: Indices of instances already in the batch; an instance that occurs twice would be its own negative.
        """
        newest = {written.instance.index: written for written in self._written}
        candidates = [written for index, written in newest.items() if index not in without]
        return random.Random(seed).sample(candidates, min(count, len(candidates)))

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the instances for a checkpoint, as tensors and plain data."""
        return [plain_rollouts(written) for written in self._written]

    def load_state_dict(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Restore what `state_dict` returned."""
        self._written.clear()
        self._written.extend(stored_rollouts(row) for row in state)


def plain_rollouts(written: InstanceRollouts) -> dict[str, Any]:
    """Return the rollouts of an instance as tensors and plain data, for a checkpoint."""
    instance = written.instance
    return {
        "instance": [instance.index, instance.query, instance.positive, list(instance.negatives), instance.source],
        "samples": {
            role.value: [_plain_rollout(rollout) for rollout in found] for role, found in written.samples.items()
        },
        "greedy": {role.value: _plain_rollout(rollout) for role, rollout in written.greedy.items()},
        "behaviour": None if written.behaviour is None else list(written.behaviour),
    }


def _plain_rollout(rollout: Rollout) -> dict[str, Any]:
    prompt, completion = rollout.prompt, rollout.completion
    return {
        "role": rollout.role.value,
        "text": rollout.text,
        "prompt": [list(prompt.token_ids), prompt.pool_start, prompt.text_tokens_cut],
        "completion": [list(completion.token_ids), list(completion.logprobs), completion.finish_reason],
        "temperature": rollout.temperature,
    }


def stored_rollouts(row: Mapping[str, Any]) -> InstanceRollouts:
    """Return the rollouts from what `plain_rollouts` returned."""
    index, query, positive, negatives, source = row["instance"]
    instance = Instance(index, query, positive, tuple(negatives), source)
    behaviour: list[Tensor] | None = row["behaviour"]
    return InstanceRollouts(
        instance,
        {Role(role): [_rollout(instance, plain) for plain in found] for role, found in row["samples"].items()},
        {Role(role): _rollout(instance, plain) for role, plain in row["greedy"].items()},
        behaviour,
    )


def _rollout(instance: Instance, row: Mapping[str, Any]) -> Rollout:
    prompt_ids, pool_start, cut = row["prompt"]
    token_ids, logprobs, reason = row["completion"]
    return Rollout(
        instance,
        Role(row["role"]),
        row["text"],
        Prompt(tuple(prompt_ids), pool_start, cut),
        Completion(tuple(token_ids), tuple(logprobs), reason),
        row["temperature"],
    )
