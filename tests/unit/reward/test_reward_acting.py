"""Which negatives affect the advantages: random vectors in their place, and how single terms react to a change."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from grace_exp.config.compose import compose_config, conf_dir
from grace_exp.config.reward import (
    InfoNceConfig,
    LengthConfig,
    LogRankConfig,
    MarginRankConfig,
    RewardConfig,
    SoftmaxNegativeConfig,
    TermConfig,
    TruncationConfig,
)
from grace_exp.reward import RewardInputs, compose_reward
from grace_exp.reward.terms import TERMS

Make = Callable[..., RewardInputs]
PRESETS = sorted(path.stem for path in (conf_dir() / "reward").glob("*.yaml"))
ACTING = {
    "rollout_negatives",
    "infonce",
    "infonce_both",
    "margin_rank",
    "log_rank",
    "softmax_negatives",
    "faithful",
    "format_length",
}


def _preset(name: str) -> RewardConfig:
    """Scored as if no rationale were truncated."""
    config = compose_config(["+experiment=demo_tiny", f"reward={name}"], Path("run")).reward
    return replace(config, truncation=TruncationConfig(mode="none"))


@pytest.mark.parametrize("name", PRESETS)
def test_random_vectors_for_all_negatives_change_advantages_only_where_negatives_act(
    make_inputs: Make, name: str
) -> None:
    """Random vectors change the paper's rewards by up to 11 and its advantages by 1e-6 (METHOD 6.1)."""
    inputs = make_inputs(8, 4, 2)
    draw = torch.Generator().manual_seed(9)
    other = replace(inputs, negatives_GMH=torch.randn(8, 2, 12, generator=draw))
    config = _preset(name)
    before, after = compose_reward(inputs, config).final_GK, compose_reward(other, config).final_GK
    rewards = (after - before).abs().max()
    advantages = ((after - after.mean(dim=1, keepdim=True)) - (before - before.mean(dim=1, keepdim=True))).abs().max()
    if name in ACTING:
        assert advantages > 0.1
    else:
        assert advantages < 1e-5
        assert (rewards > 1) == (config.terms.negative is not None)


@pytest.mark.parametrize("name", ["paper_supervised", "rollout_negatives", "infonce", "infonce_both"])
def test_other_texts_in_the_batch_act_where_hard_negatives_do(make_inputs: Make, name: str) -> None:
    """Another query for the last group changes the advantages of the first, except with the paper's terms."""
    inputs = make_inputs(6, 4, 1)
    anchors = inputs.anchors_GAH.clone()
    anchors[-1] = inputs.rollouts_GKH[0, 1]
    config = _preset(name)
    finals = [compose_reward(i, config).final_GK[0] for i in (inputs, replace(inputs, anchors_GAH=anchors))]
    change = (finals[1] - finals[1].mean()) - (finals[0] - finals[0].mean())
    assert (change.abs().max() < 1e-5) == (name == "paper_supervised")


unit = st.floats(-1, 1, allow_nan=False, width=32)
VECTORS = st.lists(st.tuples(unit, unit, unit).filter(lambda v: sum(x * x for x in v) > 1e-3), min_size=4, max_size=4)


def _one_group(rollout: torch.Tensor, anchor: torch.Tensor, negatives: torch.Tensor) -> RewardInputs:
    no = torch.zeros(1, 1, dtype=torch.bool)
    return RewardInputs(rollout.view(1, 1, 3), anchor.view(1, 1, 3), negatives.view(1, -1, 3), no, torch.ones(1, 1))


@settings(max_examples=80, deadline=None)
@given(VECTORS, st.sampled_from(["hardest", "mean"]))
@example([(1.0, 0.7740463614463806, 0.265625)] * 3 + [(0.0, 0.0, 1.0)], "mean")
def test_margin_rank_is_bounded_and_grows_with_the_positive(vectors: list[tuple[float, ...]], margin: str) -> None:
    """Turning the anchor towards the rollout never lowers it; it is positive only with a margin."""
    rollout, anchor, *negatives = torch.tensor(vectors, dtype=torch.float64)
    rollout, anchor = rollout / rollout.norm(), anchor / anchor.norm()
    nearer = anchor + 0.5 * rollout
    if nearer.norm() < 1e-3:
        return
    config = MarginRankConfig(margin=margin)  # type: ignore[arg-type]
    others = torch.stack(negatives)
    rivals = functional.cosine_similarity(others, rollout[None])
    for moved_anchor in (anchor, nearer):
        own = functional.cosine_similarity(moved_anchor, rollout, dim=0)
        assume(bool(((rivals - own).abs() > 1e-9).all()))  # who wins a tie is a matter of the last bit
    value, moved = (TERMS["margin_rank"](_one_group(rollout, a, others), config).item() for a in (anchor, nearer))
    assert -2 <= value <= moved + 1e-9 <= 2 + 1e-9


def test_margin_rank_of_known_cosines() -> None:
    """Own 0.6; rivals 0.8, 0, -1: two of three outranked, margin -0.2 to the nearest, 0.6 + 0.2/3 to their mean."""
    negatives = torch.tensor([[4.0, 3.0, 0.0], [0.0, 0.0, 1.0], [-1.0, 0.0, 0.0]])
    inputs = _one_group(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([3.0, 4.0, 0.0]), negatives)
    hardest = TERMS["margin_rank"](inputs, MarginRankConfig()).item()
    mean = TERMS["margin_rank"](inputs, MarginRankConfig(margin="mean")).item()
    assert hardest == pytest.approx(-0.2 / 3)
    assert mean == pytest.approx(2 / 3 * (0.6 + 0.2 / 3))


def test_log_rank_of_known_places() -> None:
    """Own 0.6 among rivals 0.8, 0 and -1 is second of four; 0.6 itself as a rival takes the place; nothing is first."""
    axis, own = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([3.0, 4.0, 0.0])
    others = torch.tensor([[4.0, 3.0, 0.0], [0.0, 0.0, 1.0], [-1.0, 0.0, 0.0]])
    for negatives, expected in (
        (others, 1 - math.log(2) / math.log(4)),
        (torch.cat([others, own[None]]), 1 - math.log(3) / math.log(5)),
        (others[1:], 1.0),
        (others[:1], 0.0),
        (others[:0], 0.0),
    ):
        value = TERMS["log_rank"](_one_group(axis, own, negatives), LogRankConfig()).item()
        assert value == pytest.approx(expected, abs=1e-12)


def test_softmax_negative_lies_between_the_mean_and_the_nearest() -> None:
    """Of cosines 0.8, 0 and -1."""
    axis, own = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([3.0, 4.0, 0.0])
    inputs = _one_group(axis, own, torch.tensor([[4.0, 3.0, 0.0], [0.0, 0.0, 1.0], [-1.0, 0.0, 0.0]]))

    def at(temperature: float) -> float:
        return TERMS["softmax_negative"](inputs, SoftmaxNegativeConfig(temperature=temperature)).item()

    assert at(1e6) == pytest.approx(0.2 / 3, abs=1e-5) and at(1e-3) == pytest.approx(-0.8)
    e = math.exp
    assert at(0.5) == pytest.approx(-(0.8 * e(1.6) - e(-2)) / (e(1.6) + 1 + e(-2)))


def test_infonce_that_has_found_its_text_is_worth_nothing_more() -> None:
    """Rivals opposite at temperature 0.05: odds of e^-40."""
    axis = torch.tensor([1.0, 0.0, 0.0])
    inputs = _one_group(axis, axis, -axis[None])
    for direction in ("rollout_to_anchors", "anchor_to_rollouts", "both"):
        value = TERMS["infonce"](inputs, InfoNceConfig(direction=direction)).item()  # type: ignore[arg-type]
        assert -1e-15 <= value <= 0


def test_length_costs_only_beyond_what_is_free(make_inputs: Make) -> None:
    """A budget of 100, half of it free: from 50 tokens down to -1 at 100; longer is no worse."""
    inputs = replace(make_inputs(1, 5), lengths_GK=torch.tensor([[1, 50, 75, 100, 300]]))
    values = TERMS["length"](inputs, LengthConfig(budget=100))
    assert values.tolist() == [[0.0, 0.0, -0.5, -1.0, -1.0]]


def test_group_relative_length_acts_at_any_length_and_has_mean_zero_between_two(make_inputs: Make) -> None:
    inputs = replace(make_inputs(3, 3), lengths_GK=torch.tensor([[10, 20, 30], [1000, 1001, 1001], [7, 7, 7]]))
    values = TERMS["length"](inputs, LengthConfig(relative_to="group"))
    assert values.tolist() == [[0.5, 0.0, -0.5], [0.5, -0.5, -0.5], [0.0, 0.0, 0.0]]


def test_faithfulness_charges_the_lender_and_has_the_mean_of_the_plain_comparison(make_inputs: Make) -> None:
    """Moving what text 0 borrowed changes the value of the rationale that was lent, and of no other."""
    inputs = make_inputs(4, 3)
    assert inputs.swapped_GKH is not None and inputs.swapped_from_G is not None and inputs.bare_GH is not None
    swapped = inputs.swapped_GKH.clone()
    swapped[0, 2] = inputs.anchors_GAH[0, 0]
    faithfulness = TERMS["faithfulness"]
    before, after = faithfulness(inputs, TermConfig()), faithfulness(replace(inputs, swapped_GKH=swapped), TermConfig())
    changed = (before != after).nonzero().tolist()
    assert changed == [[int(inputs.swapped_from_G[0]), 2]]
    assert after[tuple(changed[0])] < before[tuple(changed[0])]

    def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=-1)

    own, lent, bare = (
        cosine(v, inputs.anchors_GAH) for v in (inputs.rollouts_GKH, inputs.swapped_GKH, inputs.bare_GH[:, None])
    )
    torch.testing.assert_close(before.mean(), own.mean() - (lent.mean() + bare.mean()) / 2)


@pytest.mark.parametrize(
    ("term", "config", "missing"),
    [
        ("format", TermConfig(), {"well_formed_GK": None}),
        ("length", LengthConfig(), {"max_tokens": None}),
        ("faithfulness", TermConfig(), {"bare_GH": None}),
        ("faithfulness", TermConfig(), {"swapped_GKH": None, "swapped_from_G": None}),
    ],
)
def test_a_term_without_its_inputs_is_an_error_naming_them(
    make_inputs: Make, term: str, config: TermConfig, missing: dict[str, None]
) -> None:
    """Never a term of zeros."""
    with pytest.raises(ValueError, match=f"the {term} term needs {next(iter(missing))}"):
        TERMS[term](replace(make_inputs(), **missing), config)


def test_the_table_of_terms_names_every_term_and_preset() -> None:
    text = (Path(__file__).parents[3] / "docs" / "rewards.md").read_text(encoding="utf-8")
    assert [name for name in (*TERMS, *PRESETS) if f"`{name}`" not in text] == []
