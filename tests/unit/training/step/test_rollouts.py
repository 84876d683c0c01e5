from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from grace_exp.config.prompt import InstructionsConfig, PromptConfig
from grace_exp.config.rollout import RolloutConfig
from grace_exp.data.batch import Instance, Role, TextBatch
from grace_exp.data.prompts import Prompt, PromptBuilder
from grace_exp.policy.pooled_states import StatePooling
from grace_exp.rollout.protocol import Completion, Request
from grace_exp.training.step.rollouts import Rollouts, sample_rows, write_rollouts

K = 3
INSTANCES = [
    Instance(index=7, query="the query", positive="the positive", negatives=("not this", "nor this"), source="a"),
    Instance(index=2, query="another query", positive="another positive", negatives=("no",), source="b"),
]


def config(**settings: Any) -> RolloutConfig:
    return RolloutConfig(group_size=K, temperature=0.9, anchor_temperature=0.4, max_tokens=5, **settings)


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
    return write_rollouts(TextBatch(step=4, instances=INSTANCES), engine, prompts, config(), seed=11)


def told(rollouts: list[Any]) -> list[tuple[str, int]]:
    """Text and sample number."""
    return [(rollout.text, rollout.completion.token_ids[1]) for rollout in rollouts]


def test_one_call_asks_for_k_rationales_of_positives_and_one_of_each_anchor(engine: Engine, rollouts: Rollouts) -> None:
    (requests,) = engine.calls
    assert [request.n for request in requests] == [K, K, 1, 1, 1, 1, 1]
    assert [request.temperature for request in requests] == [0.9] * 2 + [0.4] * 5
    assert {request.max_tokens for request in requests} == {5}
    assert len({request.seed for request in requests}) == len(requests)


def test_states_are_pooled_of_what_is_not_trained_and_kept_apart_from_the_rationales(
    engine: Engine, prompts: PromptBuilder
) -> None:
    def pooling(prompt: Prompt) -> StatePooling:
        return StatePooling(prompt.pool_start, "mean", -1)

    batch, states = TextBatch(step=4, instances=INSTANCES), object()
    plain = engine.generate
    engine.generate = lambda requests: [  # type: ignore[method-assign]
        [replace(one, pooled=states if request.pooling else None) for one in answer]  # type: ignore[arg-type]
        for request, answer in zip(requests, plain(requests), strict=True)
    ]
    found = write_rollouts(batch, engine, prompts, config(), seed=11, greedy=True, pooling=pooling)
    (requests,) = engine.calls
    assert [request.pooling is None for request in requests] == [True] * 2 + [False] * 7
    assert {*found.pooled} == {*found.others()} and {*found.pooled.values()} == {states}
    assert all(one.completion.pooled is None for one in (*found.group, *found.others()))


def test_every_answer_is_kept_with_its_text(rollouts: Rollouts, prompts: PromptBuilder) -> None:
    assert [(r.instance.index, r.text, r.completion.token_ids[:2]) for r in rollouts.group] == [
        *((7, "the positive", (0, sample)) for sample in range(K)),
        *((2, "another positive", (1, sample)) for sample in range(K)),
    ]
    assert [(r.text, r.completion.token_ids[0]) for r in rollouts.others()] == [
        ("the query", 2),
        ("another query", 3),
        ("not this", 4),
        ("nor this", 5),
        ("no", 6),
    ]
    for rollout in (*rollouts.group, *rollouts.others()):
        assert rollout.prompt == prompts(rollout.role, rollout.text)
        assert rollout.sequence().completion_ids == rollout.completion.token_ids
        assert rollout.sequence().temperature == (0.9 if rollout.role is Role.POSITIVE else 0.4)


@pytest.mark.parametrize(("role", "mode"), [("query", "query_only"), ("positive", "document_only")])
def test_without_anchor_rationales_the_other_side_is_embedded_alone(
    engine: Engine, prompts: PromptBuilder, role: Any, mode: str
) -> None:
    """Negatives are on the documents' side: nothing is asked for an anchor, and its sequence is its prompt."""
    settings = config(policy_role=role, anchor_rationales=False)
    rollouts = write_rollouts(TextBatch(0, INSTANCES), engine, prompts, settings, seed=0)
    (requests,) = engine.calls
    assert settings.mode == mode
    assert [request.n for request in requests] == [K, K] + ([1, 1, 1] if role == "positive" else [])
    assert [one.completion.token_ids[0] for one in rollouts.group] == [0] * K + [1] * K
    bare = [one for one in rollouts.others() if not one.completion.token_ids]
    assert {one.text for one in bare} == (
        {"the query", "another query"}
        if role == "positive"
        else {"the positive", "another positive", "not this", "nor this", "no"}
    )
    assert all(one.prompt == prompts(one.role, one.text) and not one.completion.truncated for one in bare)


def test_with_the_query_trained_the_positive_is_the_anchor(engine: Engine, prompts: PromptBuilder) -> None:
    rollouts = write_rollouts(TextBatch(0, INSTANCES), engine, prompts, config(policy_role="query"), seed=0)
    assert told(rollouts.group) == [(text, k) for text in ("the query", "another query") for k in range(K)]
    assert told(rollouts.others())[:2] == [("the positive", 0), ("another positive", 0)]
    assert {r.temperature for r in rollouts.group} == {0.9} and {r.temperature for r in rollouts.others()} == {0.4}


def test_with_both_trained_an_instance_has_two_groups_and_no_anchor(engine: Engine, prompts: PromptBuilder) -> None:
    rollouts = write_rollouts(TextBatch(0, INSTANCES), engine, prompts, config(policy_role="both"), seed=0)
    texts = ["the positive", "the query", "another positive", "another query"]
    assert told(rollouts.group) == [(text, k) for text in texts for k in range(K)]
    assert told(rollouts.others()) == [("not this", 0), ("nor this", 0), ("no", 0)]
    assert rollouts.per_instance == 2 * K
    assert len({request.seed for request in engine.calls[0]}) == len(engine.calls[0])


@pytest.mark.parametrize("role", ["positive", "both"])
def test_greedy_rationales_of_the_trained_texts_come_in_the_same_call(engine: Engine, prompts, role: str) -> None:
    rollouts = write_rollouts(TextBatch(0, INSTANCES), engine, prompts, config(policy_role=role), 0, greedy=True)
    assert len(engine.calls) == 1
    for trained in rollouts.roles:
        greedy = rollouts.greedy(trained)
        assert [one.text for one in greedy] == [written.samples[trained][0].text for written in rollouts.instances]
        assert all(one.temperature == 0 and one in rollouts.others() for one in greedy)
    assert [(r.n, r.temperature) for r in engine.calls[0]].count((1, 0.0)) == 2 * len(rollouts.roles)


def test_seeds_depend_on_run_step_role_and_instance_and_on_nothing_else(prompts: PromptBuilder) -> None:
    def seeds(instances: list[Instance], step: int = 4, seed: int = 11) -> dict[tuple[int, ...], int]:
        engine = Engine()
        write_rollouts(TextBatch(step=step, instances=instances), engine, prompts, config(), seed)
        return {request.prompt_ids: request.seed for request in engine.calls[0]}

    both = seeds(INSTANCES)
    alone = seeds(INSTANCES[1:])
    assert alone.items() <= both.items()
    assert set(seeds(INSTANCES, step=5).values()).isdisjoint(both.values())
    assert set(seeds(INSTANCES, seed=12).values()).isdisjoint(both.values())


def test_single_texts_are_written_to_as_positive_and_as_query(engine: Engine, prompts: PromptBuilder) -> None:
    instances = [Instance(index=0, query="text", positive="text", negatives=(), source="a")]
    rollouts = write_rollouts(TextBatch(step=0, instances=instances), engine, prompts, config(), seed=0)
    assert rollouts.for_role(Role.NEGATIVE) == []
    positive, query = engine.calls[0]
    assert positive.prompt_ids == query.prompt_ids and positive.seed != query.seed


def test_texts_that_were_cut_are_counted_once(engine: Engine, prompts: PromptBuilder) -> None:
    long = "many words " * 50
    instances = [Instance(index=0, query="short", positive=long, negatives=(long,), source="a")]
    rollouts = write_rollouts(TextBatch(step=0, instances=instances), engine, prompts, config(), seed=0)
    assert rollouts.prompts_cut() == 2


def test_sample_rows_hold_whole_groups_with_figures_and_their_anchors_without(rollouts: Rollouts) -> None:
    figures = {
        Role.POSITIVE: {"total": torch.arange(6.0).view(2, 3), "advantage": -torch.arange(6.0).view(2, 3)},
    }
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
    assert len(sample_rows(rollouts, figures, str, limit=100)) == 6 + 5


def test_sample_rows_of_two_sides_have_the_figures_of_their_own(engine: Engine, prompts: PromptBuilder) -> None:
    both = config(policy_role="both")
    rollouts = write_rollouts(TextBatch(0, INSTANCES), engine, prompts, both, seed=0, greedy=True)
    figures = {
        role: {"total": start + torch.arange(6.0).view(2, 3)}
        for role, start in zip(rollouts.roles, (0, 10), strict=True)
    }
    rows = sample_rows(rollouts, figures, str, limit=100)
    by_role: dict[object, list[object]] = {}
    for row in rows:
        by_role.setdefault(row["role"], []).append(row.get("total"))
    assert by_role == {
        "positive": [0, 1, 2, 3, 4, 5],
        "query": [10, 11, 12, 13, 14, 15],
        "negative": [None] * 3,
        "positive (greedy)": [None] * 2,
        "query (greedy)": [None] * 2,
    }


def test_a_process_without_instances_takes_part_in_the_call_for_engines_that_are_shared(
    engine: Engine, prompts: PromptBuilder
) -> None:
    rollouts = write_rollouts(TextBatch(0, []), engine, prompts, config(), seed=0)
    assert engine.calls == [[]] and rollouts.group == []


def test_texts_have_the_instructions_of_their_source(engine: Engine, tokenizer: PreTrainedTokenizerBase) -> None:
    settings = PromptConfig(name="p", system="Read.", max_tokens=64)
    own = InstructionsConfig(positive="A passage.", negative="Another passage.")
    prompts = PromptBuilder(tokenizer, settings, instructions={"b": own})
    plain = PromptBuilder(tokenizer, settings)
    found = write_rollouts(TextBatch(step=0, instances=INSTANCES), engine, prompts, config(), seed=0)
    for rollout in [*found.group, *found.others()]:
        same = rollout.prompt == plain(rollout.role, rollout.text)
        assert same == (rollout.instance.source == "a" or rollout.role is Role.QUERY)
