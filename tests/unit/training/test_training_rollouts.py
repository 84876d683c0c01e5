from collections.abc import Sequence

import pytest
import torch

from grace_exp.config.rollout import RolloutConfig
from grace_exp.data.batch import Instance, Role, TextBatch
from grace_exp.data.prompts import PromptBuilder
from grace_exp.rollout.protocol import Completion, Request
from grace_exp.training.rollouts import Rollouts, rollout_metrics, sample_rows, write_rollouts

K = 3
CONFIG = RolloutConfig(group_size=K, temperature=0.9, anchor_temperature=0.4, max_tokens=5)
INSTANCES = [
    Instance(index=7, query="the query", positive="the positive", negatives=("not this", "nor this"), source="a"),
    Instance(index=2, query="another query", positive="another positive", negatives=("no", "never"), source="b"),
]


class Engine:
    """Answers every request with rationales that tell which request and sample they belong to."""

    def __init__(self) -> None:
        self.calls: list[Sequence[Request]] = []

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        self.calls.append(requests)
        return [
            [
                Completion((number, sample, 9), (-1.0, -1.0, -1.0), "length" if sample else "stop")
                for sample in range(r.n)
            ]
            for number, r in enumerate(requests)
        ]


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def rollouts(engine: Engine, prompts: PromptBuilder) -> Rollouts:
    return write_rollouts(TextBatch(step=4, instances=INSTANCES), engine, prompts, CONFIG, seed=11)


def test_one_call_asks_for_k_rationales_of_positives_and_one_of_each_anchor(engine: Engine, rollouts: Rollouts) -> None:
    (requests,) = engine.calls
    assert [request.n for request in requests] == [K, K, 1, 1, 1, 1, 1, 1]
    assert [request.temperature for request in requests] == [0.9] * 2 + [0.4] * 6
    assert {request.max_tokens for request in requests} == {5}
    assert len({request.seed for request in requests}) == len(requests)


def test_every_answer_is_kept_with_its_text(rollouts: Rollouts, prompts: PromptBuilder) -> None:
    assert [(r.instance.index, r.text, r.completion.token_ids[:2]) for r in rollouts.group] == [
        *((7, "the positive", (0, sample)) for sample in range(K)),
        *((2, "another positive", (1, sample)) for sample in range(K)),
    ]
    assert [(r.instance.index, r.text) for r in rollouts.queries] == [(7, "the query"), (2, "another query")]
    assert [(r.instance.index, r.text) for r in rollouts.negatives] == [
        (7, "not this"),
        (7, "nor this"),
        (2, "no"),
        (2, "never"),
    ]
    for rollout in rollouts.all():
        assert rollout.prompt == prompts(rollout.role, rollout.text)
        assert rollout.sequence().completion_ids == rollout.completion.token_ids
        assert rollout.sequence().temperature == (0.9 if rollout.role is Role.POSITIVE else 0.4)


def test_seeds_depend_on_run_step_role_and_instance_and_on_nothing_else(prompts: PromptBuilder) -> None:
    def seeds(instances: list[Instance], step: int = 4, seed: int = 11) -> dict[tuple[int, ...], int]:
        engine = Engine()
        write_rollouts(TextBatch(step=step, instances=instances), engine, prompts, CONFIG, seed)
        return {request.prompt_ids: request.seed for request in engine.calls[0]}

    both = seeds(INSTANCES)
    alone = seeds(INSTANCES[1:])
    assert alone.items() <= both.items()
    assert set(seeds(INSTANCES, step=5).values()).isdisjoint(both.values())
    assert set(seeds(INSTANCES, seed=12).values()).isdisjoint(both.values())


def test_reward_inputs_hold_every_embedding_in_its_place(rollouts: Rollouts) -> None:
    names = [(r.role, r.instance.index, r.text, r.completion.token_ids[1]) for r in rollouts.all()]
    embeddings = torch.arange(1.0, len(names) + 1)[:, None].expand(-1, 2)
    gathered = []

    def gather(tensor: torch.Tensor) -> torch.Tensor:
        gathered.append(tensor.shape)
        return tensor

    inputs = rollouts.reward_inputs(embeddings, gather)
    for group, instance in enumerate((7, 2)):
        for sample in range(K):
            role, index, _, number = names[int(inputs.rollouts[group, sample, 0]) - 1]
            assert (role, index, number) == (Role.POSITIVE, instance, sample)
        assert names[int(inputs.queries[group, 0]) - 1][:2] == (Role.QUERY, instance)
        assert inputs.negatives is not None
        texts = [names[int(inputs.negatives[group, number, 0]) - 1][2] for number in range(2)]
        assert texts == list(INSTANCES[group].negatives)
    assert inputs.truncated.tolist() == [[False, True, True]] * 2
    assert inputs.lengths.tolist() == [[3] * K] * 2
    assert len(gathered) == 5  # nothing reaches the reward from this process alone
    assert rollout_metrics(inputs) == {
        "rollout/tokens_mean": 3.0,
        "rollout/tokens_max": 3.0,
        "rollout/truncated_share": pytest.approx(2 / 3),
    }


def test_single_texts_have_no_negatives(engine: Engine, prompts: PromptBuilder) -> None:
    instances = [Instance(index=0, query="text", positive="text", negatives=(), source="a")]
    rollouts = write_rollouts(TextBatch(step=0, instances=instances), engine, prompts, CONFIG, seed=0)
    assert rollouts.negatives == []
    assert rollouts.reward_inputs(torch.ones(K + 1, 2), lambda tensor: tensor).negatives is None
    positive, query = engine.calls[0]
    assert positive.prompt_ids == query.prompt_ids and positive.seed != query.seed


def test_texts_that_were_cut_are_counted_once(engine: Engine, prompts: PromptBuilder) -> None:
    long = "many words " * 50
    instances = [Instance(index=0, query="short", positive=long, negatives=(long,), source="a")]
    rollouts = write_rollouts(TextBatch(step=0, instances=instances), engine, prompts, CONFIG, seed=0)
    assert rollouts.prompts_cut().item() == 2


def test_sample_rows_hold_whole_groups_with_figures_and_their_anchors_without(rollouts: Rollouts) -> None:
    figures = {"total": torch.arange(6.0).view(2, 3), "advantage": -torch.arange(6.0).view(2, 3)}
    rows = sample_rows(rollouts, figures, lambda ids: f"<{ids[0]}.{ids[1]}>", limit=5)  # 5 hold one group of 3
    assert [(row["instance"], row["role"], row["rationale"], row.get("total")) for row in rows] == [
        (7, "positive", "<0.0>", 0.0),
        (7, "positive", "<0.1>", 1.0),
        (7, "positive", "<0.2>", 2.0),
        (7, "query", "<2.0>", None),
        (7, "negative", "<4.0>", None),
        (7, "negative", "<5.0>", None),
    ]
    assert rows[1]["advantage"] == -1.0 and rows[1]["finish_reason"] == "length" and rows[0]["source"] == "a"
    assert rows[0]["rationale_tokens"] == 3 and rows[0]["prompt_tokens"] == len(rollouts.group[0].prompt.token_ids)
    assert len(sample_rows(rollouts, figures, str, limit=1)) == 6  # never less than a group
    assert len(sample_rows(rollouts, figures, str, limit=100)) == 12
