"""Results of a step's forwards: embeddings for the reward, and log-probs for the update."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from grace_exp.config.hardware import HardwareConfig
from grace_exp.policy.forward_pass import ForwardPass, Scored, collect
from grace_exp.policy.packing import Region, TextSequence
from grace_exp.policy.policy import Policy
from grace_exp.policy.pooled_states import PooledStates
from grace_exp.policy.reference import Reference
from grace_exp.training.step.rollouts import Rollout, sequences_of


class RewardEncoder(Protocol):
    """A model whose embeddings are rewarded."""

    def embed(self, sequences: Sequence[TextSequence], regions: Sequence[Region] = ()) -> dict[Region, Tensor]:
        """Return embeddings by region, float32 [n, hidden]."""
        ...


@dataclass(frozen=True, eq=False)
class EmbeddingPass:
    """Rollouts of one forward without the output head, and their embeddings by region [n, hidden], with gradients."""

    rollouts: Sequence[Rollout]
    embeddings: dict[Region, Tensor]


class StepScores:
    """The embeddings and log-probs of each rollout; each rollout is computed once.

    If the policy is the reward's encoder, one forward gives both for a trained rollout. Otherwise the policy reads the
    trained rollouts for their log-probs, and the encoder reads all rollouts.
    """

    def __init__(
        self,
        policy: Policy,
        hardware: HardwareConfig,
        regions: Sequence[Region],
        *,
        encoder: RewardEncoder | None,
        reference: Reference | None,
        entropy: bool,
        embedding_gradients: Literal["none", "trained", "all"] = "none",
    ) -> None:
        """Start without rollouts.

        Args:
            policy: The policy before the step's first update.
            hardware: `keep_forward`, and its token budget.
            regions: The pooled regions.
            encoder: The reward's encoder; None: the policy.
            reference: Computes log-probs of the trained rollouts, for a KL penalty in the reward; None: not needed.
            entropy: Whether forwards kept for the update hold the entropy.
            embedding_gradients: The rollouts whose embeddings carry gradients in forwards kept for the update; with
                `all`, forwards of rollouts that are not trained are kept too.
        """
        self._policy = policy
        self._hardware = hardware
        self._regions = tuple(regions)
        self._encoder = encoder
        self._reference = reference
        self._entropy = entropy
        self._embedding_gradients = embedding_gradients
        self._embeddings: dict[Region, dict[Rollout, Tensor]] = {region: {} for region in regions}
        self._logprobs: dict[Rollout, Tensor] = {}
        self._reference_logprobs: dict[Rollout, Tensor] = {}
        self.passes: list[ForwardPass] = []
        """Forwards of the trained rollouts with gradients, kept for the update if `keep_forward` is set."""
        self.other_passes: list[EmbeddingPass] = []
        """Forwards of all other rollouts, kept if their embeddings get gradients too."""

    def add(
        self,
        trained: Sequence[Rollout],
        others: Sequence[Rollout],
        pooled: Mapping[Rollout, PooledStates] | None = None,
    ) -> None:
        """Compute rollouts that are new to this step.

        Args:
            trained: Rollouts that an update may use; with `keep_forward` all of them in one call.
            others: Rollouts that need only their embeddings.
            pooled: Hidden states of others that the engine pooled with the policy's present weights, for embeddings by
                the policy without gradients.
        """
        encoder = self._encoder or self._policy
        in_one_pass = [rollout for rollout in others if pooled and rollout in pooled]
        if pooled and in_one_pass:
            states = [pooled[rollout] for rollout in in_one_pass]
            found = self._policy.one_pass.embed(sequences_of(in_one_pass), states, self._regions)
            for region, rows_NH in found.items():
                self._embeddings[region].update(zip(in_one_pass, rows_NH, strict=True))
            others = [rollout for rollout in others if rollout not in pooled]
        unembedded = [*trained, *others]
        if trained:
            covered, scored = self._score(trained, others)
            self._logprobs |= _rows(trained, scored)
            if encoder is self._policy:
                self._keep(covered, scored)
                unembedded = unembedded[len(covered) :]
        if trained and self._reference is not None:
            scored = self._reference.score(sequences_of(trained), self._regions)
            self._reference_logprobs |= _rows(trained, scored)
            if encoder is self._reference:
                self._keep(trained, scored)
                unembedded = unembedded[len(trained) :]
        if unembedded and self._hardware.keeps_forward and self._embedding_gradients == "all":
            self._embed_with_gradients(unembedded)
        elif unembedded:
            for region, rows_NH in encoder.embed(sequences_of(unembedded), self._regions).items():
                self._embeddings[region].update(zip(unembedded, rows_NH, strict=True))

    def _score(self, trained: Sequence[Rollout], others: Sequence[Rollout]) -> tuple[Sequence[Rollout], Scored]:
        """Return the rollouts of one forward of the policy (`trained`, perhaps also `others`), and their scores."""
        by_policy = self._encoder is None
        if not self._hardware.keeps_forward:
            covered = [*trained, *others] if by_policy else trained
            return covered, self._policy.score(sequences_of(covered), self._regions)
        # With one update a step the scoring weights are those that are updated.
        self._policy.model.train()
        sequences = sequences_of(trained)
        regions = self._regions if by_policy else ()
        passes = self._policy.passes(
            sequences,
            self._hardware.train_budget,
            regions,
            embedding_gradients=self._embedding_gradients != "none",
            entropy=self._entropy,
        )
        self.passes = list(passes)
        return trained, collect(sequences, self.passes)

    def _embed_with_gradients(self, others: Sequence[Rollout]) -> None:
        sequences = sequences_of(others)
        for indices in self._policy.plan(sequences, self._hardware.train_budget):
            found = self._policy.embedding_pass(sequences, indices, self._regions)
            rollouts = [others[index] for index in indices]
            self.other_passes.append(EmbeddingPass(rollouts, found))
            for region, rows_NH in found.items():
                self._embeddings[region].update(zip(rollouts, rows_NH.detach(), strict=True))

    def embeddings(self, rollouts: Sequence[Rollout], region: Region) -> Tensor:
        """Return the embeddings in the order of `rollouts`, [n, hidden] float32."""
        found = self._embeddings[region]
        return torch.stack([found[rollout] for rollout in rollouts])

    def rows(self, rollouts: Sequence[Rollout]) -> list[Tensor]:
        """Return each rollout's log-probs under the policy before the step's first update, [tokens] nats."""
        return [self._logprobs[rollout] for rollout in rollouts]

    def logprobs(self, rollouts: Sequence[Rollout]) -> Tensor:
        """Return the same as one tensor, [n, longest], 0 after the end."""
        return pad_sequence(self.rows(rollouts), batch_first=True)

    def reference_logprobs(self, rollouts: Sequence[Rollout]) -> Tensor:
        """Return log-probs under the reference, [n, longest] nats, 0 after the end."""
        return pad_sequence([self._reference_logprobs[rollout] for rollout in rollouts], batch_first=True)

    def _keep(self, rollouts: Sequence[Rollout], scored: Scored) -> None:
        for region, rows_NH in scored.embeddings.items():
            self._embeddings[region].update(zip(rollouts, rows_NH, strict=True))


def _rows(first: Sequence[Rollout], scored: Scored) -> dict[Rollout, Tensor]:
    """Return the log-probs of the first of the scored rollouts."""
    return {
        rollout: row[: len(rollout.completion.token_ids)]
        for rollout, row in zip(first, scored.logprobs_NT, strict=False)
    }
