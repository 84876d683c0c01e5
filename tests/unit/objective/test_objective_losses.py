"""The losses: closed forms, clip regions, aggregation, and rationales that do not count."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from grace_exp.config.objective import ImportanceConfig, KlConfig, ObjectiveConfig
from grace_exp.objective import ALGORITHMS, KL_ESTIMATORS, LossInputs
from grace_exp.objective.aggregate import counts, denominator

NAMES = sorted(ALGORITHMS.keys() - {"custom"})  # which has functions of the user's own
CLIPPED = ["grpo", "dr_grpo", "dapo", "reinforce_pp", "reinforce_pp_baseline"]
SCORE_FUNCTION = ["rloo", "remax", "copg"]
NAN = float("nan")
LENGTHS = (5, 2, 1)


def config(algorithm: str = "grpo", **settings: Any) -> ObjectiveConfig:
    if algorithm == "copg":
        settings["kl"] = KlConfig(estimator="k1", placement="reward")
    return ObjectiveConfig(algorithm=algorithm, **{"clip_low": 0.2, "clip_high": 0.3} | settings)


def inputs(ratio: float = 1.0, rows: int = 3, length: int = 5, noise: float = 0.0) -> LossInputs:
    draw = torch.Generator().manual_seed(0)
    old = -3 * torch.rand(rows, length, generator=draw, dtype=torch.float64)
    advantages = torch.randn(rows, generator=draw, dtype=torch.float64)
    shift = torch.tensor(ratio, dtype=torch.float64).log() + noise * torch.randn(old.shape, generator=draw).double()
    return LossInputs(
        logprobs_NT=(old + shift).requires_grad_(),
        old_logprobs_NT=old,
        advantages_N=advantages,
        mask_NT=torch.arange(length) < torch.tensor(LENGTHS)[:rows, None],
    )


def loss(given: LossInputs, settings: ObjectiveConfig) -> tuple[Tensor, dict[str, Tensor]]:
    return ALGORITHMS[settings.algorithm].loss(given, settings)


def gradient(given: LossInputs, settings: ObjectiveConfig) -> Tensor:
    return torch.autograd.grad(loss(given, settings)[0], given.logprobs_NT)[0]


@pytest.mark.parametrize("algorithm", NAMES)
def test_at_ratio_one_every_gradient_is_that_of_reinforce(algorithm: str) -> None:
    """-A at the rationale's tokens and 0 at padding."""
    given = inputs()
    torch.testing.assert_close(gradient(given, config(algorithm)), -given.advantages_N[:, None] * given.mask_NT)
    metrics = loss(given, config(algorithm))[1]
    assert metrics["ratio"].item() == pytest.approx(8) and metrics["approx_kl"].item() == pytest.approx(0, abs=1e-12)
    assert metrics.get("clipped", torch.tensor(0)).item() == 0
    assert not any(value.requires_grad for value in metrics.values())


@pytest.mark.parametrize("algorithm", SCORE_FUNCTION)
def test_reinforce_losses_have_neither_ratio_nor_clip(algorithm: str) -> None:
    """-A log pi, however far the policy has moved."""
    given = inputs(3.0)
    expected = (-given.advantages_N[:, None] * given.logprobs_NT)[given.mask_NT].sum()
    torch.testing.assert_close(loss(given, config(algorithm))[0], expected)
    torch.testing.assert_close(gradient(given, config(algorithm)), -given.advantages_N[:, None] * given.mask_NT)


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope", "clipped"),
    [
        # Inside the range: -r A, gradient -r A.
        (1.1, 2.0, -2.2, -2.2, 0),
        (0.9, -2.0, 1.8, 1.8, 0),
        # Outside, where the objective would still improve: the clip cuts.
        (1.5, 2.0, -2.6, 0.0, 1),
        (0.5, -2.0, 1.6, 0.0, 1),
        # Outside, where it has become worse: no clip, the way back stays open.
        (0.5, 2.0, -1.0, -1.0, 0),
        (1.5, -2.0, 3.0, 3.0, 0),
        # Nothing to gain or lose.
        (1.5, 0.0, 0.0, 0.0, 0),
    ],
)
@pytest.mark.parametrize("algorithm", [*CLIPPED, "gspo"])
def test_clip_regions(algorithm: str, ratio: float, advantage: float, value: float, slope: float, clipped: int) -> None:
    """PPO's six regions with an asymmetric range [0.8, 1.3]; of one token, GSPO's ratio is the token's."""
    given = replace(inputs(ratio, 1, 1), advantages_N=torch.tensor([advantage], dtype=torch.float64))
    found, metrics = loss(given, config(algorithm))
    assert found.item() == pytest.approx(value)
    assert gradient(given, config(algorithm)).item() == pytest.approx(slope, abs=1e-12)
    assert metrics["clipped"].item() == clipped
    assert metrics["ratio"].item() == pytest.approx(ratio)


@pytest.mark.parametrize("algorithm", CLIPPED)
def test_the_clipped_loss_token_by_token(algorithm: str) -> None:
    """Written out in Python."""
    given, expected = inputs(1.0, noise=0.4), 0.0
    for row, length in enumerate(LENGTHS):
        for t in range(length):
            ratio = (given.logprobs_NT[row, t] - given.old_logprobs_NT[row, t]).exp().item()
            advantage = given.advantages_N[row].item()
            expected += -min(ratio * advantage, min(max(ratio, 0.8), 1.3) * advantage)
    assert loss(given, config(algorithm))[0].item() == pytest.approx(expected)


def test_gspo_is_the_mean_over_rationales_of_the_clipped_geometric_mean() -> None:
    """Equations 5 and 7 of arXiv 2507.18071, written out; the gradient is that of the geometric mean."""
    given = inputs(1.0, noise=0.4)
    settings = config("gspo", aggregation="sequence_mean", clip_low=0.05, clip_high=0.05)
    terms = []
    for row, length in enumerate(LENGTHS):
        ratio = (given.logprobs_NT[row, :length] - given.old_logprobs_NT[row, :length]).mean().exp()
        terms.append(-torch.minimum(ratio * given.advantages_N[row], ratio.clamp(0.95, 1.05) * given.advantages_N[row]))
    expected = torch.stack(terms).mean()
    (wanted,) = torch.autograd.grad(expected, given.logprobs_NT)
    found = loss(given, settings)[0] / denominator(8, 3, settings, 10)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient(given, settings) / 3, wanted)


@pytest.mark.parametrize("algorithm", NAMES)
def test_aggregations_of_unequal_rationales(algorithm: str) -> None:
    """Token mean, mean of means, and sum over a constant, of the same token losses."""
    given = inputs(1.05, noise=0.1)
    single = [LossInputs(given.logprobs_NT[i : i + 1], given.old_logprobs_NT[i : i + 1], given.advantages_N[i : i + 1],
                         given.mask_NT[i : i + 1]) for i in range(3)]  # fmt: skip
    sums = [loss(one, config(algorithm))[0].item() for one in single]
    tokens, rationales = counts(given.counted_NT).tolist()
    assert (tokens, rationales) == (8, 3)
    expected = {
        "token_mean": sum(sums) / 8,
        "sequence_mean": sum(value / length for value, length in zip(sums, LENGTHS, strict=True)) / 3,
        "constant": sum(sums) / (3 * 7),
    }
    for aggregation, value in expected.items():
        settings = config(algorithm, aggregation=aggregation)
        found = loss(given, settings)[0] / denominator(tokens, rationales, settings, max_tokens=7)
        assert found.item() == pytest.approx(value), aggregation
    fixed = config(algorithm, aggregation="constant", length_normalizer=11)
    assert denominator(tokens, rationales, fixed, max_tokens=7) == 33


@pytest.mark.parametrize("padding", [NAN, float("inf"), -float("inf"), 1e30])
@pytest.mark.parametrize("algorithm", NAMES)
def test_padding_adds_nothing(algorithm: str, padding: float) -> None:
    """Whatever it holds, in each of the tensors, to loss, metrics and gradient."""
    settings = config(algorithm, entropy_coefficient=0.1, aggregation="sequence_mean")
    if algorithm != "copg":
        settings = replace(settings, kl=KlConfig(coefficient=0.1), importance=ImportanceConfig(mode="sequence"))
    plain = inputs(1.1)
    parts = {"reference_logprobs_NT": plain.old_logprobs_NT - 0.3, "engine_logprobs_NT": plain.old_logprobs_NT + 0.1,
             "entropy_NT": plain.old_logprobs_NT.abs()}  # fmt: skip
    clean = replace(plain, **parts)
    dirty = replace(
        clean,
        logprobs_NT=clean.logprobs_NT.detach().masked_fill(~clean.mask_NT, padding).requires_grad_(),
        old_logprobs_NT=clean.old_logprobs_NT.masked_fill(~clean.mask_NT, -padding),
        **{name: values.masked_fill(~clean.mask_NT, padding) for name, values in parts.items()},
    )
    torch.testing.assert_close(loss(dirty, settings), loss(clean, settings), rtol=0, atol=0)
    found = gradient(dirty, settings)
    torch.testing.assert_close(found, gradient(clean, settings), rtol=0, atol=0)
    assert (found[~clean.mask_NT] == 0).all()


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "constant"])
@pytest.mark.parametrize("algorithm", NAMES)
def test_rationales_that_are_not_kept_change_nothing(algorithm: str, aggregation: str) -> None:
    """Neither sums nor counts are other than without them."""
    settings = config(algorithm, aggregation=aggregation)
    given = inputs(1.1, noise=0.2)
    masked = replace(given, kept_N=torch.tensor([True, False, True]))
    rest = torch.tensor([0, 2])
    without = LossInputs(
        given.logprobs_NT[rest], given.old_logprobs_NT[rest], given.advantages_N[rest], given.mask_NT[rest]
    )
    torch.testing.assert_close(loss(masked, settings), loss(without, settings))
    assert torch.equal(counts(masked.counted_NT), counts(without.counted_NT))
    assert (gradient(masked, settings)[1] == 0).all()


@pytest.mark.parametrize("algorithm", NAMES)
def test_tokens_without_an_engine_log_prob_are_left_out(algorithm: str) -> None:
    """Of loss, gradient and denominator, whether or not weights are made of the others."""
    given = inputs(1.1)
    engine = given.old_logprobs_NT.clone()
    engine[0, 1], engine[0, 3], engine[2, 0] = NAN, -torch.inf, torch.inf
    without = given.mask_NT.clone()
    without[0, 1] = without[0, 3] = without[2, 0] = False
    settings = config(algorithm)
    found, expected = replace(given, engine_logprobs_NT=engine), replace(given, mask_NT=without)
    torch.testing.assert_close(loss(found, settings), loss(expected, settings))
    assert counts(found.counted_NT).tolist() == counts(expected.counted_NT).tolist() == [5, 2]
    assert (gradient(found, settings)[~without] == 0).all()


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "constant"])
@pytest.mark.parametrize("algorithm", NAMES)
def test_micro_batches_add_up(algorithm: str, aggregation: str) -> None:
    """Loss, metrics and counts of the rows taken one by one sum to those of all."""
    given, settings = inputs(1.25), config(algorithm, aggregation=aggregation)
    whole, metrics = loss(given, settings)
    rows = [
        LossInputs(
            given.logprobs_NT[row : row + 1],
            given.old_logprobs_NT[row : row + 1],
            given.advantages_N[row : row + 1],
            given.mask_NT[row : row + 1],
        )
        for row in range(3)
    ]
    parts = [loss(row, settings) for row in rows]
    torch.testing.assert_close(torch.stack([value for value, _ in parts]).sum(), whole)
    for name, value in metrics.items():
        torch.testing.assert_close(torch.stack([figures[name] for _, figures in parts]).sum(), value)
    assert torch.equal(torch.stack([counts(row.counted_NT) for row in rows]).sum(dim=0), counts(given.counted_NT))


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "constant"])
@pytest.mark.parametrize("algorithm", NAMES)
def test_rows_without_tokens_give_a_zero_that_can_be_backpropagated(algorithm: str, aggregation: str) -> None:
    """Every process must take part in backward."""
    given, settings = inputs(), config(algorithm, aggregation=aggregation)
    given = replace(given, mask_NT=torch.zeros_like(given.mask_NT))
    assert loss(given, settings)[0].item() == 0
    assert (gradient(given, settings) == 0).all()
    assert denominator(*counts(given.counted_NT).tolist(), settings, 10) >= 1


@pytest.mark.parametrize("algorithm", NAMES)
def test_zero_advantages_give_zero_gradient(algorithm: str) -> None:
    """Equal rewards train nothing, on policy or off it."""
    given = replace(inputs(1.7), advantages_N=torch.zeros(3, dtype=torch.float64))
    assert (gradient(given, config(algorithm)) == 0).all()


@pytest.mark.parametrize("algorithm", NAMES)
def test_gradient_flows_through_the_policy_only(algorithm: str) -> None:
    """Old, reference, engine and advantages are constants even when handed over with a graph."""
    given = inputs()
    constants = [given.old_logprobs_NT, given.advantages_N, given.old_logprobs_NT - 0.1]
    old, advantages, reference = (values.clone().requires_grad_() for values in constants)
    given = replace(given, old_logprobs_NT=old, advantages_N=advantages, reference_logprobs_NT=reference)
    settings = config(algorithm) if algorithm == "copg" else config(algorithm, kl=KlConfig(coefficient=0.5))
    loss(given, settings)[0].backward()
    assert given.logprobs_NT.grad is not None
    assert old.grad is None and advantages.grad is None and reference.grad is None


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_is_added_per_token(estimator: str) -> None:
    """Loss = surrogate + coefficient x sum of the estimator over the rationale's tokens."""
    given = inputs(1.1)
    reference = given.old_logprobs_NT - 0.4
    settings = config(kl=KlConfig(coefficient=0.3, estimator=estimator))
    found, metrics = loss(replace(given, reference_logprobs_NT=reference), settings)
    kl = (KL_ESTIMATORS[estimator](given.logprobs_NT, reference) * given.mask_NT).sum()
    torch.testing.assert_close(metrics["kl_reference"], kl.detach())
    torch.testing.assert_close(found, metrics["surrogate"] + 0.3 * kl)


def test_a_penalty_in_the_reward_is_not_in_the_loss() -> None:
    """It would be paid twice."""
    given = inputs(1.1)
    given = replace(given, reference_logprobs_NT=given.old_logprobs_NT - 0.4)
    in_reward = config(kl=KlConfig(coefficient=0.3, placement="reward"))
    assert loss(given, in_reward)[0].item() == loss(given, config())[0].item()


def test_the_entropy_bonus_lowers_the_loss_by_its_mean() -> None:
    """And pulls the policy's entropy up: its gradient is -coefficient."""
    given = replace(inputs(1.1), entropy_NT=torch.full((3, 5), 2.0, dtype=torch.float64, requires_grad=True))
    found, metrics = loss(given, config(entropy_coefficient=0.25))
    assert found.item() == pytest.approx(loss(given, config())[0].item() - 0.25 * 2 * 8)
    assert metrics["entropy"].item() == 16
    assert given.entropy_NT is not None
    (slope,) = torch.autograd.grad(found, given.entropy_NT)
    torch.testing.assert_close(slope, -0.25 * given.mask_NT.double())


def test_importance_weights_are_capped_per_token() -> None:
    """Trainer over engine probabilities 1/2, 2, 8 with a cap of 3: the surrogate is weighted by 1/2, 2, 3."""
    old = torch.full((1, 3), -4.0, dtype=torch.float64)
    weights = torch.tensor([[0.5, 2.0, 8.0]], dtype=torch.float64)
    given = LossInputs(
        old.clone().requires_grad_(), old, torch.ones(1).double(), torch.ones(1, 3, dtype=torch.bool),
        engine_logprobs_NT=old - weights.log(),
    )  # fmt: skip
    for algorithm in ("grpo", "rloo"):
        settings = config(algorithm, importance=ImportanceConfig(mode="token", cap=3.0))
        torch.testing.assert_close(gradient(given, settings), -weights.clamp(max=3))
        assert loss(given, settings)[1]["importance"].item() == pytest.approx(5.5)
    # Of the whole rationale: 1/2 x 2 x 8 = 8.
    whole = config(importance=ImportanceConfig(mode="sequence", cap=3.0))
    torch.testing.assert_close(gradient(given, whole), torch.full_like(old, -3))
    loose = config(importance=ImportanceConfig(mode="sequence", cap=100.0))
    torch.testing.assert_close(gradient(given, loose), torch.full_like(old, -8))


@pytest.mark.parametrize("mode", ["token", "sequence"])
def test_an_engine_that_agrees_needs_no_correction(mode: str) -> None:
    """Weights of 1 change nothing."""
    given = inputs(1.1, noise=0.1)
    given = replace(given, engine_logprobs_NT=given.old_logprobs_NT)
    corrected, plain = (loss(given, config(importance=ImportanceConfig(mode=m)))[0] for m in (mode, "none"))
    torch.testing.assert_close(corrected, plain)


def test_approx_kl_is_k3_of_old_against_new() -> None:
    """All ratios r: k3 a token is r - 1 - log r."""
    _, metrics = loss(inputs(1.1), config())
    expected = 8 * (0.1 - torch.tensor(1.1, dtype=torch.float64).log().item())
    assert metrics["approx_kl"].item() == pytest.approx(expected)


@pytest.mark.parametrize("algorithm", NAMES)
def test_huge_ratios_stay_finite(algorithm: str) -> None:
    """exp(300) is infinite in float32: one token would make the step's gradient nan."""
    given = LossInputs(
        logprobs_NT=torch.tensor([[-1.0], [-1.0]], requires_grad=True),
        old_logprobs_NT=torch.full((2, 1), -301.0),
        advantages_N=torch.tensor([1.0, -1.0]),
        mask_NT=torch.ones(2, 1, dtype=torch.bool),
        engine_logprobs_NT=torch.full((2, 1), -600.0),
    )
    modes = ["none"] if algorithm == "copg" else ["none", "token", "sequence"]
    for mode in modes:
        settings = config(algorithm, importance=ImportanceConfig(mode=mode, cap=1e30))
        value, metrics = loss(given, settings)
        assert torch.stack([value, *metrics.values()]).isfinite().all()
        assert gradient(given, settings).isfinite().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kl": KlConfig(coefficient=0.1)}, r"objective\.kl\.coefficient=0\.1 needs reference_logprobs"),
        ({"importance": ImportanceConfig(mode="token")}, r"importance\.mode=token needs engine_logprobs"),
        ({"entropy_coefficient": 0.1}, r"entropy_coefficient=0\.1 needs entropies"),
    ],
)
def test_what_is_asked_for_is_never_dropped(settings: dict[str, Any], message: str) -> None:
    """A setting without its tensor is an error."""
    with pytest.raises(ValueError, match=message):
        loss(inputs(), config(**settings))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("old_logprobs_NT", torch.zeros(1, 5)),
        ("mask_NT", torch.ones(3, 1, dtype=torch.bool)),
        ("mask_NT", torch.ones(3, 5, dtype=torch.int64)),
        ("advantages_N", torch.zeros(3, 1)),
        ("reference_logprobs_NT", torch.zeros(5)),
        ("engine_logprobs_NT", torch.zeros(3)),
        ("entropy_NT", torch.zeros(5)),
        ("kept_N", torch.ones(3, 1, dtype=torch.bool)),
        ("kept_N", torch.ones(3)),
    ],
)
def test_inputs_that_would_broadcast_are_errors(field: str, value: Tensor) -> None:
    """The message names the field."""
    with pytest.raises(ValueError, match=field):
        replace(inputs(), **{field: value})
