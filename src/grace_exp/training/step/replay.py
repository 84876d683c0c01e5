"""Instances of earlier steps with what was written to them, kept to be trained on again (CoPG, arXiv 2406.19185)."""

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
    """The newest `capacity` written instances.

    Every process is to hold the same ones in the same order, so that any number of processes draws the same, and the
    first process's checkpoint is everybody's.
    """

    def __init__(self, capacity: int) -> None:
        """Start empty."""
        self._written: deque[InstanceRollouts] = deque(maxlen=capacity)

    def __len__(self) -> int:
        """Number of stored instances."""
        return len(self._written)

    def add(self, written: Iterable[InstanceRollouts]) -> None:
        """Append; beyond the capacity the oldest go.

        Args:
            written: With `behaviour`; its tensors on the CPU and of no larger storage.
        """
        self._written.extend(written)

    def draw(self, count: int, seed: int, *, without: Collection[int] = ()) -> list[InstanceRollouts]:
        """Stored instances at random, each at most once and in its newest version; fewer than `count` if need be.

        Args:
            count: How many.
            seed: Of the draw.
            without: Indices of instances that are in the batch already: one twice would be its own negative.
        """
        newest = {written.instance.index: written for written in self._written}
        candidates = [written for index, written in newest.items() if index not in without]
        return random.Random(seed).sample(candidates, min(count, len(candidates)))

    def state_dict(self) -> list[dict[str, Any]]:
        """For a checkpoint: tensors and plain data only."""
        return [plain_rollouts(written) for written in self._written]

    def load_state_dict(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Take over what `state_dict` gave."""
        self._written.clear()
        self._written.extend(stored_rollouts(row) for row in state)


def plain_rollouts(written: InstanceRollouts) -> dict[str, Any]:
    """What was written to an instance as tensors and plain data, for a checkpoint."""
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
    """The other way: from what `plain_rollouts` gave."""
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
