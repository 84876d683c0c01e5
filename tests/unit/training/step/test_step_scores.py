"""Which model computes which part of a step's rollouts, and that nothing is computed twice."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from grace_exp.config.hardware import HardwareConfig
from grace_exp.data.batch import Instance, Role
from grace_exp.data.prompts import Prompt
from grace_exp.policy.forward_pass import Scored
from grace_exp.policy.packing import TextSequence
from grace_exp.rollout.protocol import Completion
from grace_exp.training.step.rollouts import Rollout, Rollouts
from grace_exp.training.step.step_scores import StepScores

INSTANCE = Instance(index=0, query="q", positive="p", negatives=(), source="s")


def rollout(*ids: int) -> Rollout:
    return Rollout(INSTANCE, Role.POSITIVE, "p", Prompt((1,), 0), Completion(ids, (-1.0,) * len(ids), "stop"), 1.0)


TRAINED, OTHERS, LATER = [rollout(5, 6), rollout(7, 8, 9)], [rollout(10)], [rollout(5, 6)]


class Model:
    """Embeddings and log-probs that tell the model and the tokens; keeps what it is asked."""

    def __init__(self, number: float) -> None:
        self.number = number
        self.scored: list[int] = []
        self.embedded: list[int] = []
        self.model = SimpleNamespace(train=lambda: None)
        self.one_pass = Pooled()

    def score(self, sequences: Sequence[TextSequence], regions: Sequence[str]) -> Scored:
        self.scored.append(len(sequences))
        longest = max(len(sequence.completion_ids) for sequence in sequences)
        logprobs = torch.zeros(len(sequences), longest)
        for row, sequence in zip(logprobs, sequences, strict=True):
            row[: len(sequence.completion_ids)] = -self.number
        return Scored(self.rows(sequences, regions), logprobs, logprobs != 0)

    def embed(self, sequences: Sequence[TextSequence], regions: Sequence[str]) -> Any:
        self.embedded.append(len(sequences))
        return self.rows(sequences, regions)

    def rows(self, sequences: Sequence[TextSequence], regions: Sequence[str]) -> Any:
        rows = [[self.number, float(sequence.completion_ids[0])] for sequence in sequences]
        return {region: torch.tensor(rows) for region in regions}


class Pooled:
    """Embeddings of another number out of the states of writing."""

    def embed(self, sequences: Sequence[TextSequence], pooled: Sequence[str], regions: Sequence[str]) -> Any:
        assert pooled == ["states"]
        return Model(7).rows(sequences, regions)


def scores(policy: Model, **settings: Any) -> StepScores:
    settings = {"encoder": None, "reference": None, "entropy": False} | settings
    return StepScores(policy, HardwareConfig(name="cpu"), ("rationale",), **settings)  # type: ignore[arg-type]


def first(found: StepScores, rollouts: list[Rollout]) -> list[list[float]]:
    values: Tensor = found.embeddings(rollouts, "rationale")
    return values.tolist()  # type: ignore[no-any-return]


def test_with_the_policy_as_encoder_one_forward_gives_both() -> None:
    policy = Model(1)
    found = scores(policy)
    found.add(TRAINED, OTHERS)
    assert (policy.scored, policy.embedded) == ([3], [])
    assert first(found, [*OTHERS, *TRAINED]) == [[1, 10], [1, 5], [1, 7]]
    assert found.logprobs(TRAINED).tolist() == [[-1, -1, 0], [-1, -1, -1]]
    found.add([], LATER)
    assert (policy.scored, policy.embedded) == ([3], [1])
    assert first(found, LATER) == [[1, 5]]


def test_what_was_pooled_while_it_was_written_is_not_computed_again() -> None:
    policy = Model(1)
    found = scores(policy)
    found.add(TRAINED, [*OTHERS, *LATER], {OTHERS[0]: "states"})  # type: ignore[dict-item]
    assert (policy.scored, policy.embedded) == ([3], [])
    assert first(found, [*OTHERS, *LATER, *TRAINED]) == [[7, 10], [1, 5], [1, 5], [1, 7]]


def test_another_encoder_embeds_everything_and_the_policy_scores_what_is_trained() -> None:
    policy, encoder = Model(1), Model(2)
    found = scores(policy, encoder=encoder)
    found.add(TRAINED, OTHERS)
    found.add([], LATER)
    assert (policy.scored, policy.embedded) == ([2], []) and (encoder.scored, encoder.embedded) == ([], [3, 1])
    assert first(found, TRAINED) == [[2, 5], [2, 7]]
    assert found.logprobs(TRAINED)[0].tolist() == [-1, -1, 0]


@pytest.mark.parametrize("frozen", [True, False])
def test_the_reference_gives_the_penalty_s_log_probs_and_where_it_is_the_encoder_in_the_same_forward(frozen) -> None:
    policy, reference, other = Model(1), Model(3), Model(2)
    found = scores(policy, reference=reference, encoder=reference if frozen else other)
    found.add(TRAINED, OTHERS)
    assert reference.scored == [2] and reference.embedded == ([1] if frozen else []) and policy.scored == [2]
    assert found.reference_logprobs(TRAINED).tolist() == [[-3, -3, 0], [-3, -3, -3]]
    assert first(found, TRAINED)[0] == ([3, 5] if frozen else [2, 5])


def test_equal_rationales_are_rollouts_of_their_own() -> None:
    assert len({*TRAINED, *LATER}) == 3 and TRAINED[0].sequence() == LATER[0].sequence()
    assert Rollouts([], (), 1).group == []
