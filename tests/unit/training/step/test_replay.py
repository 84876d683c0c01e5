import io

import torch

from grace_exp.data.batch import Instance, Role
from grace_exp.data.prompts import Prompt
from grace_exp.rollout.protocol import Completion
from grace_exp.training.step.replay import ReplayBuffer
from grace_exp.training.step.rollouts import InstanceRollouts, Rollout


def written(index: int, version: int = 0) -> InstanceRollouts:
    """One instance with two trained rationales, an anchor and a greedy one; `version` is its first token."""
    instance = Instance(index, f"query {index}", f"positive {index}", ("not", "nor"), "source")

    def rollout(role: Role, *tokens: int) -> Rollout:
        logprobs = tuple(-0.5 * token for token in tokens)
        prompt = Prompt((1, 2, index), 1, 3)
        return Rollout(instance, role, f"{role} {index}", prompt, Completion(tokens, logprobs, "stop"), 0.7)

    samples = {
        Role.POSITIVE: [rollout(Role.POSITIVE, version, 5), rollout(Role.POSITIVE, 6)],
        Role.QUERY: [rollout(Role.QUERY, 7)],
        Role.NEGATIVE: [],
    }
    behaviour = [torch.tensor([-0.1, -0.2]), torch.tensor([-0.3])]
    return InstanceRollouts(instance, samples, {Role.POSITIVE: rollout(Role.POSITIVE, 8)}, behaviour)


def filled(capacity: int, count: int) -> ReplayBuffer:
    store = ReplayBuffer(capacity)
    store.add(written(index) for index in range(count))
    return store


def indices(drawn: list[InstanceRollouts]) -> list[int]:
    return [one.instance.index for one in drawn]


def test_beyond_the_capacity_the_oldest_go() -> None:
    assert len(filled(3, 5)) == 3
    assert sorted(indices(filled(3, 5).draw(9, seed=0))) == [2, 3, 4]


def test_draws_depend_on_the_seed_alone() -> None:
    store = filled(20, 20)
    first = indices(store.draw(5, seed=1))
    assert indices(store.draw(5, seed=1)) == first == indices(filled(20, 20).draw(5, seed=1))
    assert indices(store.draw(5, seed=2)) != first
    assert len(set(first)) == 5


def test_an_instance_is_drawn_once_in_its_newest_version_and_not_if_it_is_in_the_batch() -> None:
    store = filled(9, 3)
    store.add([written(1, version=9)])
    drawn = store.draw(9, seed=0, without={2})
    assert sorted(indices(drawn)) == [0, 1]
    (again,) = (one for one in drawn if one.instance.index == 1)
    assert again.samples[Role.POSITIVE][0].completion.token_ids == (9, 5)


def test_an_empty_store_gives_nothing() -> None:
    assert ReplayBuffer(3).draw(2, seed=0) == []


def test_a_checkpoint_brings_everything_back() -> None:
    file = io.BytesIO()
    torch.save(filled(9, 4).state_dict(), file)
    file.seek(0)
    again = ReplayBuffer(9)
    again.load_state_dict(torch.load(file, weights_only=True))
    assert len(again) == 4
    for found, kept in zip(again.draw(4, seed=3), filled(9, 4).draw(4, seed=3), strict=True):
        assert found.instance == kept.instance and found.stored
        pairs = [(found.samples[role], kept.samples[role]) for role in Role]
        pairs.append(([found.greedy[Role.POSITIVE]], [kept.greedy[Role.POSITIVE]]))
        for mine, its in pairs:
            assert [(r.role, r.text, r.prompt, r.completion, r.temperature, r.instance) for r in mine] == [
                (r.role, r.text, r.prompt, r.completion, r.temperature, r.instance) for r in its
            ]
        assert found.behaviour is not None and kept.behaviour is not None
        torch.testing.assert_close(list(found.behaviour), list(kept.behaviour), rtol=0, atol=0)
