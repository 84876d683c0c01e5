"""Build the inputs of a step's rewards, and map gradients of them back to the rationales."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import repeat
from typing import Any, Protocol

import torch
from torch import Tensor

from grace_exp.config.root import GraceConfig
from grace_exp.data.batch import Role, instance_keys
from grace_exp.policy.packing import Region
from grace_exp.reward import RewardInputs, parse_rationale, required_inputs
from grace_exp.rollout.protocol import derive_seed
from grace_exp.training.step.rollouts import SIDES, Rollout, Rollouts

_ANCHORS = {Role.POSITIVE: Role.QUERY, Role.QUERY: Role.POSITIVE}


class Processes(Protocol):
    """The processes that share a step."""

    @property
    def global_rank(self) -> int:
        """Rank of this process."""
        ...

    @property
    def world_size(self) -> int:
        """Number of processes."""
        ...

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the tensor concatenated over processes along its first dimension, in rank order."""
        ...

    def own(self, tensor: Tensor) -> Tensor:
        """Return this process's rows of a gathered tensor."""
        ...


class Embedded(Protocol):
    """A holder of the embeddings of rollouts."""

    def embeddings(self, rollouts: Sequence[Rollout], region: Region) -> Tensor:
        """Return the embeddings in the order of `rollouts`, [n, hidden] float32."""
        ...


class StepInputs:
    """Builds `RewardInputs` from the rationales of a step, and maps gradients of them back to the rationales.

    Inputs hold the groups of all processes, so their number has no effect. Only `swapped` exchanges rationales among
    the instances of this process.
    """

    def __init__(
        self, config: GraceConfig, processes: Processes, decode: Callable[[Sequence[int]], str], step: int
    ) -> None:
        """Start a step.

        Args:
            config: The settings of the run.
            processes: The processes that share the step.
            decode: Turns token ids into text without control tokens, to check the form of a rationale.
            step: Number of the step.
        """
        self._config = config
        self._processes = processes
        self._decode = decode
        self._seed = derive_seed(config.seed, step, "swap", processes.global_rank)
        self._needs = required_inputs(config.reward)
        self._borrowed: dict[tuple[Rollout, Rollout], Rollout] = {}

    @property
    def regions(self) -> tuple[Region, ...]:
        """The regions pooled for every rollout."""
        region = self._config.backbone.pooling.region
        return (region, "text") if "bare" in self._needs else (region,)

    def swapped(self, samples: list[Rollout], rollouts: Rollouts) -> list[Rollout]:
        """Return each sample's text with the same sample of another instance; none if no term reads them."""
        groups = len(rollouts.instances)
        if "swapped" not in self._needs or groups == 1:
            return []
        k = len(samples) // groups
        swap_partners = self._swap_partners(groups)
        pairs = [(rollout, samples[swap_partners[place // k] * k + place % k]) for place, rollout in enumerate(samples)]
        for borrower, lent in pairs:
            if (borrower, lent) not in self._borrowed:
                self._borrowed[borrower, lent] = replace(borrower, completion=lent.completion)
        return [self._borrowed[pair] for pair in pairs]

    def borrowers(self) -> Mapping[Rollout, Rollout]:
        """From each rollout with a swapped rationale to the rollout whose text it has."""
        return {rollout: borrower for (borrower, _), rollout in self._borrowed.items()}

    def of(self, embedded: Embedded, rollouts: Rollouts, role: Role, samples: list[Rollout]) -> RewardInputs:
        """Return the reward inputs of `samples`, of which every instance has as many.

        Args:
            embedded: Holds the embeddings of every rollout that enters.
            rollouts: Rollouts of this process.
            role: Role of the samples.
            samples: Samples of this process, by instance.
        """
        groups, gather = len(rollouts.instances), self._processes.gather
        k = len(samples) // groups
        fields = {
            name: embedded.embeddings(sources, region)
            for name, (sources, region) in self._sources(rollouts, role, samples).items()
        }
        hidden, device = fields["rollouts_GKH"].shape[1], fields["rollouts_GKH"].device
        negatives, mask = self._negatives(rollouts, fields.pop("negatives_GMH", None), fields["rollouts_GKH"])
        bare = fields.pop("bare_GH", None)
        grouped = {name: gather(flat.view(groups, -1, hidden)) for name, flat in fields.items()}

        def column(values: list[Any]) -> Tensor:
            """Return a tensor with one value a sample."""
            return gather(torch.tensor(values, device=device).view(groups, k))

        well_formed = swapped_from = None
        if "well_formed" in self._needs:
            well_formed = column(
                [parse_rationale(self._decode(sample.completion.token_ids)).score for sample in samples]
            )
        if "swapped_GKH" in grouped:
            swap_partners = torch.tensor(self._swap_partners(groups), device=device)
            swapped_from = gather(swap_partners + groups * self._processes.global_rank)
        most = max(self._config.data.negative_counts(), default=0)
        keys = [instance_keys(written.instance, most) for written in rollouts.instances]
        return RewardInputs(
            rollouts_GKH=grouped["rollouts_GKH"],
            anchors_GAH=grouped["anchors_GAH"],
            negatives_GMH=gather(negatives) if negatives is not None else None,
            truncated_GK=column([sample.completion.truncated for sample in samples]),
            lengths_GK=column([len(sample.completion.token_ids) for sample in samples]),
            negative_mask_GM=gather(mask) if mask is not None else None,
            trained=SIDES[role],
            max_tokens=self._config.rollout.max_tokens,
            well_formed_GK=well_formed,
            swapped_GKH=grouped.get("swapped_GKH"),
            swapped_from_G=swapped_from,
            bare_GH=gather(bare) if bare is not None else None,
            text_keys_GX=gather(torch.tensor(keys, device=device)),
        )

    def rows(
        self, fields: Mapping[str, Tensor], rollouts: Rollouts, role: Role
    ) -> Iterator[tuple[str, Rollout, Region, Tensor]]:
        """Split tensors in the shapes of the fields of `RewardInputs` into rows.

        Args:
            fields: The tensors by the field's name, over all processes.
            rollouts: Rollouts of this process.
            role: The role whose rationales are the field `rollouts_GKH`.

        Yields:
            The field, one of this process's rollouts that it was computed from, the region, and the row [hidden]. A
            rollout comes several times if it enters several times.
        """
        for name, (sources, region) in self._sources(rollouts, role, rollouts.for_role(role)).items():
            own_rows = self._processes.own(fields[name])
            if name == "negatives_GMH":
                flat = own_rows[self._has_negative(rollouts, own_rows.shape[1], own_rows.device)]
            else:
                flat = own_rows.flatten(0, -2)
            yield from zip(repeat(name), sources, repeat(region), flat, strict=False)

    def entering(self, rollouts: Rollouts) -> list[Rollout]:
        """Return all rollouts of this process that enter the rewards of its trained rationales, each once."""
        found: dict[Rollout, None] = {}
        for role in rollouts.roles:
            for sources, _ in self._sources(rollouts, role, rollouts.for_role(role)).values():
                found |= dict.fromkeys(sources)
        return list(found)

    def _sources(
        self, rollouts: Rollouts, role: Role, samples: list[Rollout]
    ) -> dict[str, tuple[Sequence[Rollout], Region]]:
        """Return the rollouts from which each field of embeddings is built, by instance, and the region."""
        region = self._config.backbone.pooling.region
        found: dict[str, tuple[Sequence[Rollout], Region]] = {
            "rollouts_GKH": (samples, region),
            "anchors_GAH": (rollouts.for_role(_ANCHORS[role]), region),
        }
        if negatives := rollouts.for_role(Role.NEGATIVE):
            found["negatives_GMH"] = (negatives, region)
        if swapped := self.swapped(samples, rollouts):
            found["swapped_GKH"] = (swapped, region)
        if "bare" in self._needs:
            # A prompt's tokens do not attend to what follows, so any of its rationales gives the embedding without
            # rationale.
            found["bare_GH"] = (samples[:: len(samples) // len(rollouts.instances)], "text")
        return found

    def _negatives(
        self, rollouts: Rollouts, embeddings: Tensor | None, like: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return [groups, M, hidden], and the mask of real ones [groups, M] if instances differ in their number."""
        counts = self._config.data.negative_counts()
        most = max(counts)
        if not most:
            return None, None
        mask = self._has_negative(rollouts, most, like.device)
        padded = like.new_zeros(*mask.shape, like.shape[-1])
        if embeddings is not None:
            padded[mask] = embeddings
        return padded, mask if len(counts) > 1 else None

    def _has_negative(self, rollouts: Rollouts, most: int, device: torch.device) -> Tensor:
        """Return which negatives exist, [groups, M] bool."""
        counts = torch.tensor([len(written.instance.negatives) for written in rollouts.instances], device=device)
        return torch.arange(most, device=device) < counts[:, None]

    def _swap_partners(self, groups: int) -> list[int]:
        """Return whose rationales each group gets: all groups form one random cycle, so none gets its own."""
        circle = random.Random(self._seed).sample(range(groups), groups)
        following = dict(zip(circle, [*circle[1:], circle[0]], strict=True))
        return [following[group] for group in range(groups)]
