import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grace_exp.data.prompts import Prompt
from grace_exp.policy.packing import MicroBatch, TextSequence, collate, pack

CPU = torch.device("cpu")


@st.composite
def texts(draw: st.DrawFn) -> list[TextSequence]:
    groups = draw(st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=9), min_size=1, max_size=6))
    found = []
    for number, lengths in enumerate(groups):
        prompt = Prompt((number,) * draw(st.integers(1, 30)), 0)
        found += [TextSequence(prompt, (1,) * length) for length in lengths]
    random.Random(draw(st.integers(0, 9))).shuffle(found)
    return found


def laid_out(sequences: list[TextSequence], indices: list[int], share: bool, max_row_tokens: int) -> MicroBatch:
    return collate(
        sequences,
        indices,
        share_prompts=share,
        share_head=False,
        max_row_tokens=max_row_tokens,
        pad_token_id=0,
        device=CPU,
    )


@settings(max_examples=150, deadline=None)
@given(texts(), st.booleans(), st.integers(1, 200), st.integers(1, 100))
def test_a_plan_holds_every_sequence_once_within_budget_and_row_limit(
    sequences: list[TextSequence], share: bool, token_budget: int, max_row_tokens: int
) -> None:
    plan = pack(sequences, share_prompts=share, token_budget=token_budget, max_row_tokens=max_row_tokens)
    assert sorted(index for indices in plan for index in indices) == list(range(len(sequences)))
    for indices in plan:
        batch = laid_out(sequences, indices, share, max_row_tokens)
        rows, width = batch.input_ids_BL.shape
        assert rows * width <= token_budget or rows == 1
        lengths = (batch.block_BL >= 0).sum(dim=1)
        per_row = torch.bincount(batch.rows_N, minlength=rows)
        assert bool(((lengths <= max_row_tokens) | (per_row == 1)).all())
        assert batch.packed is bool((per_row > 1).any())
        assert bool((per_row > 1).all()) or not batch.packed  # the block mask is not made for rows without need


@settings(max_examples=60, deadline=None)
@given(texts(), st.booleans(), st.integers(1, 200), st.integers(1, 100))
def test_a_micro_batch_holds_exactly_the_tokens_of_its_sequences(
    sequences: list[TextSequence], share: bool, token_budget: int, max_row_tokens: int
) -> None:
    for indices in pack(sequences, share_prompts=share, token_budget=token_budget, max_row_tokens=max_row_tokens):
        batch = laid_out(sequences, indices, share, max_row_tokens)
        assert batch.indices == indices
        for number, index in enumerate(indices):
            row, sequence = batch.rows_N[number], sequences[index]
            prompt = batch.block_BL[row] == 0
            rationale = batch.block_BL[row] == batch.slots_N[number]
            assert tuple(batch.input_ids_BL[row][prompt].tolist()) == sequence.prompt.token_ids
            assert tuple(batch.input_ids_BL[row][rationale].tolist()) == sequence.completion_ids
            start = len(sequence.prompt.token_ids)
            positions = batch.position_ids_BL[row]
            assert positions[prompt].tolist() == list(range(start))
            assert positions[rationale].tolist() == list(range(start, start + len(sequence.completion_ids)))
            assert batch.targets_P[batch.owners_P == number].tolist() == list(sequence.completion_ids)


def test_plans_are_sorted_by_length_so_that_little_is_padding() -> None:
    draw = random.Random(0)
    prompts = [Prompt((number,) * 10, 0) for number in range(64)]
    sequences = [TextSequence(prompt, (1,) * draw.randrange(1, 100)) for prompt in prompts]
    plan = pack(sequences, share_prompts=True, token_budget=500, max_row_tokens=500)
    held = sum(laid_out(sequences, indices, True, 500).input_ids_BL.numel() for indices in plan)
    real = sum(10 + len(sequence.completion_ids) for sequence in sequences)
    assert real / held > 0.9


def test_a_group_computes_its_prompt_once() -> None:
    prompt = Prompt(tuple(range(50)), 0)
    group = [TextSequence(prompt, (1,) * 10) for _ in range(8)]
    (indices,) = pack(group, share_prompts=True, token_budget=1000, max_row_tokens=1000)
    assert laid_out(group, indices, True, 1000).input_ids_BL.shape == (1, 50 + 8 * 10)
    (indices,) = pack(group, share_prompts=False, token_budget=1000, max_row_tokens=1000)
    assert laid_out(group, indices, False, 1000).input_ids_BL.shape == (8, 60)


def test_the_block_mask_shows_a_rationale_its_prompt_and_itself() -> None:
    prompt = Prompt((7, 8), 1)
    batch = laid_out(
        [TextSequence(prompt, (1, 2)), TextSequence(prompt, (3,)), TextSequence(Prompt((9,), 0))], [0, 1, 2], True, 99
    )
    mask = batch.attention_mask()
    assert mask is not None
    assert batch.input_ids_BL.tolist()[0] == [7, 8, 3, 1, 2]  # shorter rationales first
    expected = [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 1, 0, 1, 1],
    ]
    assert mask[0, 0].int().tolist() == expected
    assert batch.in_text_BL.int().tolist()[0] == [0, 1, 0, 0, 0]
    assert batch.membership("text_and_rationale").int().tolist()[:2] == [[0, 1, 0, 1, 1], [0, 1, 1, 0, 0]]
    assert batch.membership("rationale").int().tolist()[:2] == [[0, 0, 0, 1, 1], [0, 0, 1, 0, 0]]


@pytest.fixture
def batch() -> MicroBatch:
    prompt = Prompt((7, 8), 1)
    return laid_out([TextSequence(prompt, (1,) * length) for length in (2, 3, 1)], [0, 1, 2], True, 99)


def test_ragged_values_go_to_the_row_of_their_sequence(batch: MicroBatch) -> None:
    flat = batch.owners_P * 10.0 + batch.offsets_P
    rows, mask = batch.ragged(flat + 1)
    assert rows.tolist() == [[1, 2, 0], [11, 12, 13], [21, 0, 0]]
    assert mask.tolist() == [[True, True, False], [True, True, True], [True, False, False]]


def test_ragged_values_keep_their_gradient(batch: MicroBatch) -> None:
    flat = torch.ones(len(batch.owners_P), requires_grad=True)
    rows, _ = batch.ragged(flat)
    (rows * torch.arange(9.0).view(3, 3)).sum().backward()
    assert flat.grad is not None
    assert sorted(flat.grad.tolist()) == [0, 1, 3, 4, 5, 6]
