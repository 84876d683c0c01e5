"""The inputs of the reward for each trained side, and what an update gets from it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from grace_exp.config.compose import compose_config
from grace_exp.config.root import GraceConfig
from grace_exp.data.batch import Instance, Role
from grace_exp.data.prompts import Prompt
from grace_exp.policy.packing import Region, TextSequence
from grace_exp.reward import EmbeddingError, RewardInputs
from grace_exp.rollout.protocol import Completion
from grace_exp.training.step import rewards as module
from grace_exp.training.step.rewards import StepRewards
from grace_exp.training.step.rollouts import TRAINED_ROLES, InstanceRollouts, Rollout, Rollouts, text_of
from grace_exp.training.step.step_inputs import StepInputs
from grace_exp.training.step.trained_role import TrainedRole, role_metrics, trained_batch

K = 3
INSTANCES = [
    Instance(index=7, query="q7", positive="p7", negatives=("a", "b"), source="s"),
    Instance(index=2, query="q2", positive="p2", negatives=(), source="s"),
    Instance(index=5, query="q5", positive="p5", negatives=("c",), source="s"),
]


def written(instance: Instance, roles: Sequence[Role], number: int) -> InstanceRollouts:
    """Rationales whose tokens name instance, role, sample; the K-th is truncated."""

    def rollout(role: Role, text: str, sample: int, temperature: float = 1.0) -> Rollout:
        ids = (instance.index, list(Role).index(role), sample, number)[: 2 + sample % 3]
        reason: Any = "length" if sample == K - 1 else "stop"
        prompt = Prompt(tuple(map(ord, text)), 0)
        return Rollout(instance, role, text, prompt, Completion(ids, (-1.0,) * len(ids), reason), temperature)

    samples = {
        role: [rollout(role, text_of(instance, role), sample) for sample in range(K if role in roles else 1)]
        for role in (Role.POSITIVE, Role.QUERY)
    }
    samples[Role.NEGATIVE] = [rollout(Role.NEGATIVE, text, place) for place, text in enumerate(instance.negatives)]
    return InstanceRollouts(instance, samples, {role: rollout(role, text_of(instance, role), 9, 0.0) for role in roles})


def rollouts_of(role: str) -> Rollouts:
    roles = TRAINED_ROLES[role]
    return Rollouts([written(one, roles, number) for number, one in enumerate(INSTANCES)], roles, K)


class Scores:
    """Embeddings that are different for every sequence and known: a direction drawn from it."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []
        self.passes: list[Any] = []

    def add(self, trained: Sequence[Rollout], others: Sequence[Rollout], pooled: Any = None) -> None:
        self.calls.append((len(trained), len(others)))

    def embeddings(self, rollouts: Sequence[Rollout], region: Region) -> Tensor:
        return torch.stack([embedding(rollout.sequence(), region) for rollout in rollouts])

    def rows(self, rollouts: Sequence[Rollout]) -> list[Tensor]:
        return [-torch.tensor(rollout.completion.token_ids, dtype=torch.float) for rollout in rollouts]


def embedding(sequence: TextSequence, region: Region) -> Tensor:
    key = (sequence.prompt.token_ids, () if region == "text" else sequence.completion_ids)
    return torch.randn(8, generator=torch.Generator().manual_seed(hash(key) % 2**32))


class Alone:
    """One process, as the second of several."""

    global_rank, world_size = 0, 1

    def own(self, tensor: Tensor) -> Tensor:
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        return tensor


def settings(tmp_path: Path, *overrides: str) -> GraceConfig:
    data = ["data=wordnet_mixed", "data.sources.wordnet.negatives=2", "reward=mixed"]
    return compose_config(["+experiment=demo_tiny", *data, *overrides], tmp_path)


@pytest.fixture
def scores() -> Scores:
    return Scores()


def rewards_of(config: GraceConfig, scores: Any, form: str = "") -> StepRewards:
    """Rewards of step 3; the rationales of instance 7 decode to `form`."""
    inputs = StepInputs(config, Alone(), lambda ids: form if ids[0] == 7 else "", 3)
    return StepRewards(config, scores, Alone(), inputs)


def inputs_of(config: GraceConfig, scores: Any, rollouts: Rollouts) -> list[RewardInputs]:
    rewards = rewards_of(config, scores, "<think>a</think>b")
    rewards.add(rollouts, rollouts)
    return [side.inputs for side in rewards.trained_roles(rollouts)]


def expected(rollouts: Rollouts, role: Role) -> Tensor:
    flat = [embedding(one.sequence(), "text_and_rationale") for one in rollouts.for_role(role)]
    return torch.stack(flat).view(len(rollouts.instances), -1, 8)


@pytest.mark.parametrize("role", ["positive", "query", "both"])
def test_each_side_is_rewarded_by_the_samples_of_the_other(tmp_path: Path, scores: Scores, role: str) -> None:
    rollouts = rollouts_of(role)
    found = inputs_of(settings(tmp_path, f"rollout.policy_role={role}"), scores, rollouts)
    assert [inputs.trained for inputs in found] == [trained.value for trained in rollouts.roles]
    for inputs, trained in zip(found, rollouts.roles, strict=True):
        other = Role.QUERY if trained is Role.POSITIVE else Role.POSITIVE
        torch.testing.assert_close(inputs.rollouts_GKH, expected(rollouts, trained), rtol=0, atol=0)
        torch.testing.assert_close(inputs.anchors_GAH, expected(rollouts, other), rtol=0, atol=0)
        assert inputs.anchors_GAH.shape[1] == (K if role == "both" else 1)
        assert inputs.truncated_GK.tolist() == [[False] * (K - 1) + [True]] * 3
        assert inputs.lengths_GK.tolist() == [[2, 3, 4]] * 3 and inputs.max_tokens == 16
        assert (inputs.swapped_GKH, inputs.bare_GH, inputs.well_formed_GK) == (None, None, None)


def test_instances_have_their_own_negatives_and_padding_is_masked(tmp_path: Path, scores: Scores) -> None:
    rollouts = rollouts_of("positive")
    (inputs,) = inputs_of(settings(tmp_path), scores, rollouts)
    assert inputs.negatives_GMH is not None and inputs.negative_mask_GM is not None
    assert inputs.negative_mask_GM.tolist() == [[True, True], [False, False], [True, False]]
    real = torch.stack([embedding(one.sequence(), "text_and_rationale") for one in rollouts.for_role(Role.NEGATIVE)])
    torch.testing.assert_close(inputs.negatives_GMH[inputs.negative_mask_GM], real, rtol=0, atol=0)


def test_instances_with_as_many_negatives_need_no_mask_and_single_texts_no_negatives(tmp_path, scores) -> None:
    config = compose_config(["+experiment=demo_tiny"], tmp_path)
    rollouts = rollouts_of("positive")
    one = rollouts.only([rollouts.instances[2]])
    (inputs,) = inputs_of(config, scores, one)
    assert (
        inputs.negatives_GMH is not None and inputs.negatives_GMH.shape == (1, 1, 8) and inputs.negative_mask_GM is None
    )
    single = compose_config(["+experiment=tiny_unsup"], tmp_path)
    (inputs,) = inputs_of(single, scores, rollouts.only([rollouts.instances[1]]))
    assert inputs.negatives_GMH is None and inputs.negative_mask_GM is None


def test_extra_inputs_are_filled_where_a_term_reads_them(tmp_path: Path, scores: Scores) -> None:
    rollouts = rollouts_of("both")
    terms = ["+reward.terms.faithfulness.weight=1", "+reward.terms.format.weight=1"]
    for inputs, role in zip(
        inputs_of(settings(tmp_path, "rollout.policy_role=both", *terms), scores, rollouts), rollouts.roles, strict=True
    ):
        assert inputs.well_formed_GK is not None and inputs.well_formed_GK[0].tolist() == [1.0] * K
        assert inputs.bare_GH is not None and inputs.swapped_GKH is not None and inputs.swapped_from_G is not None
        samples = rollouts.for_role(role)
        bare = [embedding(TextSequence(samples[group * K].prompt), "text") for group in range(3)]
        torch.testing.assert_close(inputs.bare_GH, torch.stack(bare), rtol=0, atol=0)
        for group, lender in enumerate(inputs.swapped_from_G.tolist()):
            assert lender != group
            for k in range(K):
                own, lent = samples[group * K + k], samples[lender * K + k]
                sequence = TextSequence(own.prompt, lent.completion.token_ids, own.temperature)
                torch.testing.assert_close(inputs.swapped_GKH[group, k], embedding(sequence, "text_and_rationale"))
    # Trained 18, others 3 negatives + 6 greedy; then 18 borrowed ones, all in one further call.
    assert scores.calls == [(18, 9), (0, 18)]


def test_nothing_is_computed_twice_when_instances_are_replaced(tmp_path: Path, scores: Scores) -> None:
    config = settings(tmp_path, "+reward.terms.faithfulness.weight=1")
    rollouts = rollouts_of("positive")
    rewards = rewards_of(config, scores)
    rewards.add(rollouts, rollouts)
    before = rewards.trained_roles(rollouts)[0]
    new = rollouts.only([written(Instance(9, "q9", "p9", ("d",), "s"), rollouts.roles, 9)])
    changed = rollouts.only([*rollouts.instances[:2], *new.instances])
    rewards.add(changed, new)
    after = rewards.trained_roles(changed)[0]
    assert scores.calls[2:] == [(K, 3), (0, 2 * K)]  # the new one borrows, and lends
    assert torch.equal(after.inputs.rollouts_GKH[:2], before.inputs.rollouts_GKH[:2])
    assert not torch.equal(after.inputs.rollouts_GKH[2], before.inputs.rollouts_GKH[2])


def test_the_greedy_baseline_is_the_reward_of_one_rationale_by_the_same_terms(tmp_path, scores, monkeypatch) -> None:
    seen = []
    compute = module.compute_advantages
    monkeypatch.setattr(module, "compute_advantages", lambda i, c: seen.append(i) or compute(i, c))
    config = settings(tmp_path, "objective=remax", "reward.truncation.mode=none")
    rollouts = rollouts_of("positive")
    inputs_of(config, scores, rollouts)
    (judged,) = seen
    greedy = rollouts.only(
        [
            InstanceRollouts(one.instance, {**one.samples, Role.POSITIVE: [one.greedy[Role.POSITIVE]] * K}, one.greedy)
            for one in rollouts.instances
        ]
    )
    seen.clear()
    inputs_of(config, scores, greedy)
    # K times the same rationale: but for `consistency`, which is 1 within such a group and 0 for one alone.
    torch.testing.assert_close(judged.baseline_G, seen[0].rewards_GK[:, 0] - 0.2 / 0.1)


def test_a_broken_embedding_is_an_error(tmp_path: Path, scores: Scores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "embeddings", lambda rollouts, region: torch.zeros(len(rollouts), 8))
    with pytest.raises(EmbeddingError):
        inputs_of(settings(tmp_path), scores, rollouts_of("positive"))


@pytest.mark.parametrize("role", ["positive", "both"])
def test_an_update_gets_each_rationale_with_its_own_advantage(tmp_path: Path, scores: Scores, role: str) -> None:
    config = settings(tmp_path, f"rollout.policy_role={role}")
    rollouts = rollouts_of(role)
    second = rollouts.instances[1]
    lengths = [len(one.completion.token_ids) for one in rollouts.only([second]).group]
    stored = replace(second, behaviour=[torch.full((length,), -0.5) for length in lengths])
    rollouts = rollouts.only([rollouts.instances[0], stored, rollouts.instances[2]])
    rewards = rewards_of(config, scores)
    trained_roles = rewards.trained_roles(rollouts)
    batch = trained_batch(rollouts, scores, trained_roles, lambda tensor: tensor)  # type: ignore[arg-type]
    advantages = {
        id(one): side.advantages_GK.flatten()[place]
        for side in trained_roles
        for place, one in enumerate(rollouts.for_role(side.role))
    }
    assert batch.advantages_GK.shape == (3 * len(trained_roles), K)
    assert batch.rollouts == rollouts.group
    for place, (one, sequence) in enumerate(zip(rollouts.group, batch.sequences, strict=True)):
        assert sequence == one.sequence()
        assert batch.advantages_GK.flatten()[place] == advantages[id(one)]
        length = len(one.completion.token_ids)
        wanted = [-0.5] * length if one.instance.index == 2 else [-float(token) for token in one.completion.token_ids]
        assert batch.old_logprobs_NT[place, :length].tolist() == wanted
        assert (
            batch.engine_logprobs_NT is not None
            and batch.engine_logprobs_NT[place, :length].tolist() == [-1.0] * length
        )


def test_figures_of_two_sides_are_means_and_each_side_s_own(tmp_path: Path, scores: Scores) -> None:
    def figures(role: str) -> tuple[list[TrainedRole], dict[str, float]]:
        rewards = rewards_of(settings(tmp_path, f"rollout.policy_role={role}"), scores)
        trained_roles = rewards.trained_roles(rollouts_of(role))
        return trained_roles, role_metrics(trained_roles)

    trained_roles, both = figures("both")
    for name in ("reward/total/mean", "embed/cos_pos", "rollout/truncated_share"):
        first, second = both[f"positive/{name}"], both[f"query/{name}"]
        assert both[name] == pytest.approx((first + second) / 2)
    assert both["rollout/tokens_max"] == 4.0
    assert both["positive/reward/total/mean"] == pytest.approx(trained_roles[0].reward.total_GK.mean().item())
    _, one = figures("query")
    assert one.keys() == {name for name in both if not name.startswith(("positive/", "query/"))}
