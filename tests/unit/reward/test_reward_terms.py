"""Each term against its formula in plain loops, and its symmetries."""

import math
from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import torch

from grace_exp.config.reward import HardNegativeConfig, InfoNceConfig, TermConfig, TermsConfig
from grace_exp.reward.inputs import RewardInputs
from grace_exp.reward.terms import TERMS

Make = Callable[..., RewardInputs]
Vector = list[float]

TEMPERATURE = 0.05
CONFIGS: dict[str, tuple[str, TermConfig]] = {
    "positive": ("positive", TermConfig()),
    "negative": ("negative", TermConfig()),
    "consistency": ("consistency", TermConfig()),
    "hard_negative_supervised": ("hard_negative", HardNegativeConfig(formula="supervised")),
    "hard_negative_unsupervised": ("hard_negative", HardNegativeConfig(formula="unsupervised")),
    "infonce": ("infonce", InfoNceConfig(temperature=TEMPERATURE)),
}
SHAPES = [(1, 1, None), (1, 4, 0), (1, 3, 2), (5, 1, 1), (2, 2, 3), (4, 8, 1), (6, 3, 2), (3, 5, None)]
each_term = pytest.mark.parametrize("case", CONFIGS)


def test_registry_has_the_fields_of_the_schema() -> None:
    """In its order, which is the order of logging."""
    assert list(TERMS) == [field.name for field in fields(TermsConfig)]


@each_term
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_term_equals_plain_loop(make_inputs: Make, case: str, shape: tuple[int, int, int | None]) -> None:
    """METHOD 2, 3 and 6 in Python floats."""
    inputs = make_inputs(*shape, seed=sum(size or 0 for size in shape))
    name, config = CONFIGS[case]
    found = TERMS[name](inputs, config)
    assert found.shape == shape[:2]
    assert found.tolist() == [pytest.approx(row, abs=1e-9) for row in _loop(inputs, case)]


@each_term
def test_term_moves_with_its_rollout(make_inputs: Make, case: str) -> None:
    """Reordering groups and rollouts reorders values alike."""
    inputs = make_inputs(5, 4, 2)
    name, config = CONFIGS[case]
    groups, samples = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([2, 0, 3, 1])
    assert inputs.negatives is not None
    moved = RewardInputs(
        rollouts=inputs.rollouts[groups][:, samples],
        queries=inputs.queries[groups],
        negatives=inputs.negatives[groups],
        truncated=inputs.truncated[groups][:, samples],
        lengths=inputs.lengths[groups][:, samples],
    )
    expected = TERMS[name](inputs, config)[groups][:, samples]
    torch.testing.assert_close(TERMS[name](moved, config), expected, atol=1e-12, rtol=0)


@each_term
def test_term_ignores_lengths_of_embeddings(make_inputs: Make, case: str) -> None:
    """Only directions count, whatever each vector is scaled by."""
    inputs = make_inputs(4, 3, 2)
    name, config = CONFIGS[case]
    assert inputs.negatives is not None
    scaled = replace(
        inputs,
        # Powers of two scale floats without rounding.
        rollouts=inputs.rollouts * 2.0 ** torch.arange(-60, 60, 10).view(4, 3, 1),
        queries=inputs.queries * 2.0 ** torch.arange(-4, 4, 2).view(4, 1),
        negatives=inputs.negatives * 2.0**-20,
    )
    torch.testing.assert_close(TERMS[name](scaled, config), TERMS[name](inputs, config), atol=1e-12, rtol=0)


@each_term
def test_only_acting_terms_differ_within_a_group(make_inputs: Make, case: str) -> None:
    """METHOD 6.1: the supervised paper's negatives are equal for all rollouts of a group."""
    name, config = CONFIGS[case]
    values = TERMS[name](make_inputs(4, 3, 2), config)
    assert bool((values == values[:, :1]).all()) == (case in {"negative", "hard_negative_supervised"})


def test_infonce_of_indistinguishable_candidates_is_minus_log_of_their_number() -> None:
    """Softmax over equal cosines: 3 queries and 2 negatives give log(1/5)."""
    same = torch.ones(1, 1, 4)
    inputs = RewardInputs(
        rollouts=same.expand(3, 2, 4),
        queries=same[0].expand(3, 4),
        negatives=same.expand(3, 2, 4),
        truncated=torch.zeros(3, 2, dtype=torch.bool),
        lengths=torch.ones(3, 2),
    )
    values = TERMS["infonce"](inputs, InfoNceConfig())
    torch.testing.assert_close(values, torch.full((3, 2), -math.log(5), dtype=torch.float64))


def _loop(inputs: RewardInputs, case: str) -> list[list[float]]:
    queries, rollouts = inputs.queries.tolist(), inputs.rollouts.tolist()
    negatives = [[] for _ in queries] if inputs.negatives is None else inputs.negatives.tolist()
    return [
        [_value(case, i, k, queries, rollouts, negatives) for k in range(len(rollouts[i]))] for i in range(len(queries))
    ]


def _value(
    case: str, i: int, k: int, queries: list[Vector], rollouts: list[list[Vector]], negatives: list[list[Vector]]
) -> float:
    others = [j for j in range(len(queries)) if j != i]
    match case:
        case "positive":
            return _cosine(queries[i], rollouts[i][k])
        case "negative":
            return -math.fsum(_cosine(queries[i], negative) for negative in negatives[i])
        case "consistency":
            return _mean([_cosine(rollouts[i][k], rollouts[i][j]) for j in range(len(rollouts[i])) if j != k])
        case "hard_negative_supervised":
            return -_mean([max(_cosine(queries[i], rollout) for rollout in rollouts[j]) for j in others])
        case "hard_negative_unsupervised":
            return -_mean([_cosine(rollouts[i][k], queries[j]) for j in others])
        case _:
            candidates = [*queries, *negatives[i]]
            odds = [math.exp(_cosine(rollouts[i][k], candidate) / TEMPERATURE) for candidate in candidates]
            return math.log(odds[i] / math.fsum(odds))


def _cosine(a: Vector, b: Vector) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0
