"""Each term against its formula in plain loops, and its symmetries."""

import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from grace_exp.config.reward import (
    HardNegativeConfig,
    InfoNceConfig,
    LengthConfig,
    LogRankConfig,
    MarginRankConfig,
    NegativeConfig,
    SoftmaxNegativeConfig,
    TermConfig,
    TermsConfig,
)
from grace_exp.reward.inputs import RewardInputs
from grace_exp.reward.terms import TERMS

Make = Callable[..., RewardInputs]
Vector = list[float]

TEMPERATURE = 0.05
CONFIGS: dict[str, tuple[str, TermConfig]] = {
    "positive": ("positive", TermConfig()),
    "negative_query": ("negative", NegativeConfig()),
    "negative_rollout": ("negative", NegativeConfig(anchor="rollout")),
    "consistency": ("consistency", TermConfig()),
    "hard_negative_query": ("hard_negative", HardNegativeConfig()),
    "hard_negative_rollout": ("hard_negative", HardNegativeConfig(anchor="rollout")),
    "hard_negative_auto": ("hard_negative", HardNegativeConfig(anchor="auto")),
    "infonce": ("infonce", InfoNceConfig(temperature=TEMPERATURE)),
    "infonce_all": ("infonce", InfoNceConfig(temperature=TEMPERATURE, negatives="all")),
    "infonce_anchor": ("infonce", InfoNceConfig(temperature=TEMPERATURE, direction="anchor_to_rollouts")),
    "infonce_anchor_all": (
        "infonce",
        InfoNceConfig(temperature=TEMPERATURE, direction="anchor_to_rollouts", negatives="all"),
    ),
    "infonce_both": ("infonce", InfoNceConfig(temperature=TEMPERATURE, direction="both")),
    "margin_rank_hardest": ("margin_rank", MarginRankConfig()),
    "margin_rank_mean": ("margin_rank", MarginRankConfig(margin="mean")),
    "log_rank": ("log_rank", LogRankConfig()),
    "log_rank_all": ("log_rank", LogRankConfig(negatives="all")),
    "softmax_negative": ("softmax_negative", SoftmaxNegativeConfig(temperature=TEMPERATURE)),
    "softmax_negative_all": ("softmax_negative", SoftmaxNegativeConfig(temperature=TEMPERATURE, negatives="all")),
    "format": ("format", TermConfig()),
    "length_budget": ("length", LengthConfig(free=0.25)),
    "length_group": ("length", LengthConfig(relative_to="group")),
    "faithfulness": ("faithfulness", TermConfig()),
}
INERT = {"negative_query", "hard_negative_query", "hard_negative_auto"}
"""Where every instance has a negative and positives are trained."""
CASES = [
    # groups, K, M, A, whether some of the negatives are padding, trained side
    (1, 1, None, 1, False, "positive"),
    (1, 4, 0, 2, False, "query"),
    (1, 3, 2, 1, True, "positive"),
    (5, 1, 1, 1, False, "positive"),
    (2, 2, 3, 2, True, "query"),
    (4, 8, 1, 3, True, "positive"),
    (3, 5, None, 1, False, "query"),
]
each_term = pytest.mark.parametrize("case", CONFIGS)


def test_registry_has_the_fields_of_the_schema() -> None:
    """In its order, which is the order of logging."""
    assert list(TERMS) == [field.name for field in fields(TermsConfig)]


@each_term
@pytest.mark.parametrize(("groups", "samples", "negatives", "anchors", "masked", "trained"), CASES)
def test_term_equals_plain_loop(
    make_inputs: Make,
    case: str,
    groups: int,
    samples: int,
    negatives: int | None,
    anchors: int,
    masked: bool,
    trained: str,
) -> None:
    """The formulas of the docstrings in Python floats."""
    inputs = make_inputs(groups, samples, negatives, anchors, seed=samples, masked=masked, trained=trained)
    found = _term(inputs, case)
    assert found.shape == (groups, samples) and found.dtype == torch.float64
    assert found.tolist() == [pytest.approx(row, abs=1e-9) for row in _loop(inputs, case)]


@each_term
def test_term_moves_with_its_rollout(make_inputs: Make, case: str) -> None:
    """Reordering groups, rollouts, anchor samples and negatives reorders values like groups and rollouts."""
    inputs = make_inputs(5, 4, 3, 2, masked=True)
    groups, samples = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([2, 0, 3, 1])
    moved = _moved(inputs, groups, samples)
    torch.testing.assert_close(_term(moved, case), _term(inputs, case)[groups][:, samples], atol=1e-12, rtol=0)


@each_term
@pytest.mark.parametrize("filler", [0.0, math.nan, 7.0])
def test_padding_of_negatives_adds_nothing(make_inputs: Make, case: str, filler: float) -> None:
    """Whatever stands in the padding."""
    inputs = make_inputs(4, 3, 2)
    assert inputs.negatives_GMH is not None
    padded = replace(
        inputs,
        negatives_GMH=torch.cat([inputs.negatives_GMH, torch.full((4, 3, 12), filler)], dim=1),
        negative_mask_GM=torch.tensor([[True, True, False, False, False]]).expand(4, 5),
    )
    torch.testing.assert_close(_term(padded, case), _term(inputs, case), atol=1e-12, rtol=0)


@each_term
def test_instances_whose_negatives_are_all_masked_have_none(make_inputs: Make, case: str) -> None:
    """So single texts may stand beside triplets."""
    inputs = make_inputs(4, 3, 2)
    masked = replace(inputs, negative_mask_GM=torch.zeros(4, 2, dtype=torch.bool))
    expected = _term(replace(inputs, negatives_GMH=None), case)
    torch.testing.assert_close(_term(masked, case), expected, atol=1e-12, rtol=0)


@each_term
@pytest.mark.parametrize("trained", ["positive", "query"])
def test_several_anchor_samples_give_the_mean_over_them(make_inputs: Make, case: str, trained: str) -> None:
    """But for the paper's max over a document's samples, which are the anchors where queries are trained."""
    inputs = make_inputs(4, 3, 2, 3, masked=True, trained=trained)
    singles = [_term(replace(inputs, anchors_GAH=inputs.anchors_GAH[:, [a]]), case) for a in range(3)]
    equal = torch.allclose(_term(inputs, case), torch.stack(singles).mean(dim=0), atol=1e-12, rtol=0)
    assert equal != (trained == "query" and case in INERT - {"negative_query"})


@each_term
def test_term_ignores_lengths_of_embeddings(make_inputs: Make, case: str) -> None:
    """Only directions count, whatever each vector is scaled by."""
    inputs = make_inputs(4, 3, 2)
    assert inputs.negatives_GMH is not None
    scaled = replace(
        inputs,
        # Powers of two scale floats without rounding.
        rollouts_GKH=inputs.rollouts_GKH * 2.0 ** torch.arange(-60, 60, 10).view(4, 3, 1),
        anchors_GAH=inputs.anchors_GAH * 2.0 ** torch.arange(-4, 4, 2).view(4, 1, 1),
        negatives_GMH=inputs.negatives_GMH * 2.0**-20,
    )
    torch.testing.assert_close(_term(scaled, case), _term(inputs, case), atol=1e-12, rtol=0)


@each_term
@pytest.mark.parametrize("trained", ["positive", "query"])
def test_only_acting_terms_differ_within_a_group(make_inputs: Make, case: str, trained: str) -> None:
    """METHOD 6.1: the paper's negatives are equal for all rationales of a group, unless queries are trained."""
    values = _term(make_inputs(4, 3, 2, trained=trained), case)
    assert bool((values == values[:, :1]).all()) == (case in INERT and trained == "positive")


@pytest.mark.parametrize("direction", ["rollout_to_anchors", "anchor_to_rollouts", "both"])
def test_infonce_of_indistinguishable_candidates_is_minus_log_of_their_number(direction: str) -> None:
    """Softmax over equal cosines: 3 texts and 2 negatives give log(1/5) whatever K; all 6 negatives log(1/9)."""
    same = torch.ones(3, 1, 4)
    shape = torch.zeros(3, 2, dtype=torch.bool)
    inputs = RewardInputs(same.expand(3, 2, 4), same, same.expand(3, 2, 4), shape, torch.ones(3, 2))
    for negatives, count in (("own", 5), ("all", 9)):
        values = TERMS["infonce"](inputs, InfoNceConfig(direction=direction, negatives=negatives))  # type: ignore[arg-type]
        torch.testing.assert_close(values, torch.full((3, 2), -math.log(count), dtype=torch.float64))


def test_trained_queries_are_the_paper_s_query_side(make_inputs: Make) -> None:
    """With K samples each side, the query side's hard negatives have the same mean whoever is trained."""
    documents = make_inputs(4, 3, 2, 3)
    queries = replace(
        documents, rollouts_GKH=documents.anchors_GAH, anchors_GAH=documents.rollouts_GKH, trained="query"
    )
    for case in INERT:
        torch.testing.assert_close(_term(queries, case).mean(dim=1), _term(documents, case)[:, 0], atol=1e-12, rtol=0)


def _term(inputs: RewardInputs, case: str) -> torch.Tensor:
    name, config = CONFIGS[case]
    return TERMS[name](inputs, config)


def _moved(inputs: RewardInputs, groups: torch.Tensor, samples: torch.Tensor) -> RewardInputs:
    """Groups and rollouts in another order, anchor samples and negatives in reverse."""
    assert inputs.negatives_GMH is not None and inputs.negative_mask_GM is not None and inputs.bare_GH is not None
    assert inputs.well_formed_GK is not None and inputs.swapped_GKH is not None and inputs.swapped_from_G is not None
    # The rationales that a text borrowed are reordered as their owner's are.
    return replace(
        inputs,
        rollouts_GKH=inputs.rollouts_GKH[groups][:, samples],
        anchors_GAH=inputs.anchors_GAH[groups].flip(1),
        negatives_GMH=inputs.negatives_GMH[groups].flip(1),
        negative_mask_GM=inputs.negative_mask_GM[groups].flip(1),
        truncated_GK=inputs.truncated_GK[groups][:, samples],
        lengths_GK=inputs.lengths_GK[groups][:, samples],
        well_formed_GK=inputs.well_formed_GK[groups][:, samples],
        swapped_GKH=inputs.swapped_GKH[groups][:, samples],
        swapped_from_G=groups.argsort()[inputs.swapped_from_G[groups]],
        bare_GH=inputs.bare_GH[groups],
    )


# ---- the formulas, in loops ---------------------------------------------------------------------------------------


def _loop(inputs: RewardInputs, case: str) -> list[list[float]]:
    fields = ("rollouts_GKH", "anchors_GAH", "swapped_GKH", "bare_GH", "swapped_from_G")
    data = {name.rpartition("_")[0]: getattr(inputs, name) for name in fields}
    lists: dict[str, Any] = {name: None if tensor is None else tensor.tolist() for name, tensor in data.items()}
    there = inputs.has_negative_GM.tolist()
    every = [[]] * len(there) if inputs.negatives_GMH is None else inputs.negatives_GMH.tolist()
    lists["negatives"] = [[d for d, ok in zip(*row, strict=True) if ok] for row in zip(every, there, strict=True)]
    lists["lengths"], lists["well_formed"] = inputs.lengths_GK.tolist(), inputs.well_formed_GK.tolist()  # type: ignore[union-attr]
    groups, samples = inputs.truncated_GK.shape
    anchors = range(inputs.anchors_GAH.shape[1])
    return [
        [_mean([_value(case, i, k, a, inputs.trained, **lists) for a in anchors]) for k in range(samples)]
        for i in range(groups)
    ]


def _value(
    case: str,
    i: int,
    k: int,
    a: int,
    trained: str,
    *,
    rollouts: list[list[Vector]],
    anchors: list[list[Vector]],
    negatives: list[list[Vector]],
    swapped: list[list[Vector]],
    swapped_from: list[int],
    bare: list[Vector],
    lengths: list[list[int]],
    well_formed: list[list[float]],
) -> float:
    others = [j for j in range(len(rollouts)) if j != i]
    own = rollouts[i][k]
    anchor = anchors[i][a]
    # The query's side of the pair, and the samples of the documents.
    query, documents = (anchor, rollouts) if trained == "positive" else (own, anchors)
    hard = negatives[i] if not case.endswith("_all") else [d for row in negatives for d in row]
    match case:
        case "positive":
            return _cosine(anchor, own)
        case "negative_query":
            return -math.fsum(_cosine(query, d) for d in negatives[i])
        case "negative_rollout":
            return -_mean([_cosine(own, d) for d in negatives[i]])
        case "consistency":
            return _mean([_cosine(own, rollouts[i][j]) for j in range(len(rollouts[i])) if j != k])
        case "hard_negative_auto":
            case = "hard_negative_query" if negatives[i] else "hard_negative_rollout"
        case "infonce" | "infonce_all":
            return _log_share(_cosine(own, anchor), [_cosine(own, anchors[j][a]) for j in others], own, hard)
        case "infonce_anchor" | "infonce_anchor_all":
            near = [
                TEMPERATURE * math.log(_mean([math.exp(_cosine(anchor, r) / TEMPERATURE) for r in rollouts[j]]))
                for j in others
            ]
            return _log_share(_cosine(own, anchor), near, anchor, hard)
        case "infonce_both":
            forth = _log_share(_cosine(own, anchor), [_cosine(own, anchors[j][a]) for j in others], own, hard)
            near = [
                TEMPERATURE * math.log(_mean([math.exp(_cosine(anchor, r) / TEMPERATURE) for r in rollouts[j]]))
                for j in others
            ]
            return (forth + _log_share(_cosine(own, anchor), near, anchor, hard)) / 2
        case "margin_rank_hardest" | "margin_rank_mean":
            rivals = [_cosine(own, c) for c in [*(anchors[j][a] for j in others), *negatives[i]]]
            if not rivals:
                return 0.0
            share = sum(_cosine(own, anchor) > rival for rival in rivals) / len(rivals)
            margin = _cosine(own, anchor) - (max(rivals) if case.endswith("hardest") else _mean(rivals))
            return share * margin if margin > 0 else (1 - share) * margin
        case "log_rank" | "log_rank_all":
            rivals = [_cosine(own, c) for c in [*(anchors[j][a] for j in others), *hard]]
            place = 1 + sum(rival >= _cosine(own, anchor) for rival in rivals)
            return 1 - math.log(place) / math.log(1 + len(rivals)) if rivals else 0.0
        case "softmax_negative" | "softmax_negative_all":
            rivals = [_cosine(own, c) for c in [*(anchors[j][a] for j in others), *hard]]
            odds = [math.exp(rival / TEMPERATURE) for rival in rivals]
            return -math.fsum(o * r for o, r in zip(odds, rivals, strict=True)) / math.fsum(odds) if rivals else 0.0
        case "format":
            return well_formed[i][k]
        case "length_budget":  # a budget of 16, of which 4 are free
            return -min(1.0, max(0.0, (lengths[i][k] - 4) / 12))
        case "length_group":
            low, high = min(lengths[i]), max(lengths[i])
            return 0.5 - (lengths[i][k] - low) / (high - low) if high > low else 0.0
        case "faithfulness":
            nothing = _cosine(bare[i], anchor)
            if not others:
                return _cosine(own, anchor) - nothing
            # Anchor samples do not pair across texts: the mean over those of the text that borrowed.
            j = swapped_from.index(i)
            lent = _mean([_cosine(swapped[j][k], other) for other in anchors[j]])
            return _cosine(own, anchor) - lent / 2 - nothing / 2
    if case == "hard_negative_query":
        nearest = [max(_cosine(query, document) for document in documents[j]) for j in others]
        return -_mean(nearest)
    return -_mean([_cosine(own, anchors[j][a]) for j in others])


def _log_share(own: float, texts: list[float], one: Vector, negatives: list[Vector]) -> float:
    rivals = [*texts, *(_cosine(one, negative) for negative in negatives)]
    odds = [math.exp(rival / TEMPERATURE) for rival in [own, *rivals]]
    return math.log(odds[0] / math.fsum(odds))


def _cosine(a: Vector, b: Vector) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0
