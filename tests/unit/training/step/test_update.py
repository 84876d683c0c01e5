import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from grace_exp.config.backbone import PoolingConfig
from grace_exp.config.hardware import HardwareConfig
from grace_exp.config.objective import ImportanceConfig, KlConfig, ObjectiveConfig
from grace_exp.data.batch import Role
from grace_exp.data.prompts import PromptBuilder
from grace_exp.objective import ALGORITHMS
from grace_exp.objective.aggregate import denominator
from grace_exp.policy.packing import TextSequence
from grace_exp.policy.policy import Policy
from grace_exp.policy.reference import Reference
from grace_exp.training.step.update import MiniBatch, accumulate_gradients, first_nonfinite

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COMPLETIONS = [(5, 6, 7, 2), (8, 2), (9, 10, 11, 12, 13, 2), (14, 2), (15, 16, 2), (17, 18, 19)]
TOKENS = sum(map(len, COMPLETIONS))
NAMES = ["grpo", "gspo", "rloo", "copg"]
"""One of each kind of loss; the other algorithms share theirs with one of these."""
BETA = KlConfig(coefficient=0.3, estimator="k1", placement="reward", anchor="behaviour")


@pytest.fixture
def policy(model: "PreTrainedModel") -> Policy:
    return Policy(model.train(), PoolingConfig(), HardwareConfig(name="test"), pad_token_id=0)


@pytest.fixture
def mini_batch(prompts: PromptBuilder) -> MiniBatch:
    """Two groups of three; old log-probs near the model's would be, some ratios beyond the clip."""
    texts = [prompts(Role.POSITIVE, text) for text in ("a text", "another text, which is longer")]
    sequences = [TextSequence(texts[number // 3], ids, 0.8) for number, ids in enumerate(COMPLETIONS)]
    generator = torch.Generator().manual_seed(0)
    old = -7 + torch.randn(6, 6, generator=generator)
    advantages = torch.tensor([[1.0, -0.5, -0.5], [2.0, -1.0, -1.0]])
    engine = old + 0.5 * torch.randn(6, 6, generator=generator)
    kept = torch.ones(2, 3, dtype=torch.bool)
    return MiniBatch(sequences, advantages, old, rewards_GK=advantages + 3, kept_GK=kept, engine_logprobs_NT=engine)


def config(algorithm: str = "grpo", **objective: Any) -> ObjectiveConfig:
    if algorithm == "copg":
        objective |= {"kl": BETA, "importance": ImportanceConfig()}
    return ObjectiveConfig(algorithm=algorithm, **objective)


def run(
    policy: Policy, mini_batch: MiniBatch, budget: int, settings: ObjectiveConfig, reference: Reference | None = None
):
    """Gradients, sums and the `last` flags of one pass."""
    flags = []

    def backward(loss: Tensor, last: bool) -> None:
        flags.append(last)
        loss.backward()

    policy.zero_grad()
    divisor = denominator(*mini_batch.counts().tolist(), settings, max_tokens=9)
    totals = accumulate_gradients(
        policy, reference, mini_batch, settings, token_budget=budget, divisor=divisor, backward=backward
    )
    return {name: p.grad.clone() for name, p in policy.named_parameters()}, totals, flags


def plain_logprobs(policy: Policy, sequence: TextSequence) -> Tensor:
    prompt = len(sequence.prompt.token_ids)
    ids = torch.tensor([[*sequence.prompt.token_ids, *sequence.completion_ids]])
    logits = policy.model(ids).logits[0, prompt - 1 : -1] / sequence.temperature
    return logits.log_softmax(-1)[range(len(logits)), ids[0, prompt:]]


def plain_loss(policy: Policy, mini_batch: MiniBatch, clip: float) -> Tensor:
    """The token mean of the clipped surrogate, a sequence at a time, from whole logits."""
    terms = []
    for sequence, advantage, old in zip(
        mini_batch.sequences, mini_batch.advantages_GK.flatten(), mini_batch.old_logprobs_NT, strict=True
    ):
        logprobs = plain_logprobs(policy, sequence)
        ratio = (logprobs - old[: len(logprobs)]).exp()
        terms.append(-torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage))
    return torch.cat(terms).mean()


def test_the_loss_is_the_token_mean_over_the_mini_batch_however_it_is_cut(
    policy: Policy, mini_batch: MiniBatch
) -> None:
    expected = plain_loss(policy, mini_batch, clip=0.2)
    policy.zero_grad()
    expected.backward()
    wanted = {name: p.grad.clone() for name, p in policy.named_parameters()}
    for budget, micro_batches in ((10_000, 1), (1, 2)):  # packed, a group is one row
        gradients, totals, flags = run(policy, mini_batch, budget, config())
        torch.testing.assert_close(gradients, wanted, rtol=1e-4, atol=1e-6)
        assert totals["loss"].item() / TOKENS == pytest.approx(expected.item(), abs=1e-5)
        assert flags == [False] * (micro_batches - 1) + [True]


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "constant"])
@pytest.mark.parametrize("algorithm", NAMES)
def test_one_micro_batch_of_all_is_many_of_one(
    policy: Policy, mini_batch: MiniBatch, algorithm: str, aggregation: str
) -> None:
    """Gradient accumulation 1 x 6 = 6 x 1, with a bonus, weights and a rationale left out."""
    settings = config(
        algorithm,
        aggregation=aggregation,
        entropy_coefficient=0.01,
        importance=ImportanceConfig(mode="sequence"),
    )
    mini_batch = replace(mini_batch, kept_GK=torch.tensor([[True, True, False], [True, True, True]]))
    alone = Policy(policy.model, policy.pooling, HardwareConfig(name="test", packing=False), pad_token_id=0)
    whole = run(alone, mini_batch, 10_000, settings)
    parts = run(alone, mini_batch, 1, settings)
    assert (len(whole[2]), len(parts[2])) == (1, 6)
    torch.testing.assert_close(parts[0], whole[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(parts[1], whole[1], rtol=1e-5, atol=1e-5)
    assert any(gradient.abs().max() > 1e-3 for gradient in whole[0].values())


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "constant"])
@pytest.mark.parametrize("algorithm", NAMES)
def test_two_processes_are_one(policy: Policy, mini_batch: MiniBatch, algorithm: str, aggregation: str) -> None:
    """Each with a group and half the divisor, gradients averaged."""
    settings = config(algorithm, aggregation=aggregation)
    whole = run(policy, mini_batch, 10_000, settings)[0]
    shares = [mini_batch.part(0, 1), mini_batch.part(1, 1)]
    totals = sum(share.counts() for share in shares)
    assert torch.equal(totals, mini_batch.counts())
    divisor = denominator(*totals.tolist(), settings, max_tokens=9) / 2
    found = []
    for share in shares:
        policy.zero_grad()
        accumulate_gradients(
            policy,
            None,
            share,
            settings,
            token_budget=9999,
            divisor=divisor,
            backward=lambda loss, last: loss.backward(),
        )
        found.append({name: p.grad.clone() for name, p in policy.named_parameters()})
    averaged = {name: (found[0][name] + found[1][name]) / 2 for name in whole}
    torch.testing.assert_close(averaged, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("algorithm", NAMES)
def test_rationales_that_are_not_kept_change_nothing(policy: Policy, mini_batch: MiniBatch, algorithm: str) -> None:
    settings = config(algorithm, aggregation="sequence_mean")
    kept = torch.tensor([[True, True, False], [True, True, False]])
    chosen = [0, 1, 3, 4]
    without = replace(
        mini_batch,
        sequences=[mini_batch.sequences[number] for number in chosen],
        advantages_GK=mini_batch.advantages_GK[:, :2],
        old_logprobs_NT=mini_batch.old_logprobs_NT[chosen],
        rewards_GK=mini_batch.rewards_GK[:, :2],
        kept_GK=kept[:, :2],
        engine_logprobs_NT=mini_batch.engine_logprobs_NT[chosen],
    )
    expected = run(policy, without, 10_000, settings)[0]
    found = run(policy, replace(mini_batch, kept_GK=kept), 10_000, settings)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_these_are_all_kinds_of_loss() -> None:
    kinds = {(ALGORITHMS[name].loss, ALGORITHMS[name].refresh) for name in NAMES}
    assert {(algorithm.loss, algorithm.refresh) for name, algorithm in ALGORITHMS.items() if name != "custom"} == kinds


def test_when_nothing_counts_there_is_nothing_to_learn(policy: Policy, mini_batch: MiniBatch) -> None:
    nothing = replace(mini_batch, kept_GK=torch.zeros(2, 3, dtype=torch.bool))
    gradients, totals, _ = run(policy, nothing, 1, config())
    assert totals["loss"].item() == 0
    assert all((gradient == 0).all() for gradient in gradients.values())


def test_a_mini_batch_is_planned_once(policy: Policy, mini_batch: MiniBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, calls = policy.plan, []
    monkeypatch.setattr(policy, "plan", lambda *args: calls.append(args) or plan(*args))
    run(policy, mini_batch, 1, config())
    assert len(calls) == 1


def test_the_penalty_enters_the_loss_and_reads_the_reference(policy: Policy, mini_batch: MiniBatch) -> None:
    reference = Reference(policy)
    with torch.no_grad():
        policy.model.get_output_embeddings().weight.mul_(1.1)
    settings = config(kl=KlConfig(coefficient=0.5, estimator="k2"))
    _, totals, _ = run(policy, mini_batch, 10_000, settings, reference)
    assert totals["kl_reference"].item() > 0.01
    assert totals["loss"].item() == pytest.approx((totals["surrogate"] + 0.5 * totals["kl_reference"]).item(), rel=1e-5)
    assert all(parameter.grad is None for parameter in reference.parameters())


def test_the_bonus_is_that_of_the_entropy(policy: Policy, mini_batch: MiniBatch) -> None:
    """Of softmax(logits / temperature), from whole logits."""
    _, totals, _ = run(policy, mini_batch, 10_000, config(entropy_coefficient=0.5))
    expected = 0.0
    for sequence in mini_batch.sequences:
        ids = torch.tensor([[*sequence.prompt.token_ids, *sequence.completion_ids]])
        logits = policy.model(ids).logits[0, len(sequence.prompt.token_ids) - 1 : -1] / sequence.temperature
        expected += torch.distributions.Categorical(logits=logits).entropy().sum().item()
    assert totals["entropy"].item() == pytest.approx(expected, rel=1e-5)
    assert totals["loss"].item() == pytest.approx(totals["surrogate"].item() - 0.5 * expected, rel=1e-4)


@pytest.mark.parametrize("anchor", ["behaviour", "reference"])
def test_copg_descends_its_pairwise_loss(policy: Policy, mini_batch: MiniBatch, anchor: str) -> None:
    """Its gradient by the weights, from whole logits and all pairs of both groups; two micro-batches."""
    reference = Reference(policy) if anchor == "reference" else None
    settings = ObjectiveConfig(
        algorithm="copg", aggregation="constant", length_normalizer=1, kl=replace(BETA, anchor=anchor)
    )
    with torch.no_grad():
        policy.model.get_output_embeddings().weight.mul_(1.2)
        anchors = [row[: len(ids)] for row, ids in zip(mini_batch.old_logprobs_NT, COMPLETIONS, strict=True)]
        if reference is not None:
            assert reference.copy is not None
            anchors = [plain_logprobs(reference.copy, sequence) for sequence in mini_batch.sequences]
    log_ratios = torch.stack(
        [(plain_logprobs(policy, s) - a).sum() for s, a in zip(mini_batch.sequences, anchors, strict=True)]
    ).view(2, 3)
    assert mini_batch.rewards_GK is not None
    rewards = mini_batch.rewards_GK[:, :, None] - mini_batch.rewards_GK[:, None]
    ratios = log_ratios[:, :, None] - log_ratios[:, None]
    # Every pair twice, K - 1 = 2 partners, 6 rationales.
    expected = -((rewards - BETA.coefficient / 2 * ratios) * ratios).sum() / 2 / 2 / 6
    policy.zero_grad()
    expected.backward()
    wanted = {name: p.grad.clone() for name, p in policy.named_parameters()}
    found, totals, _ = run(policy, mini_batch, 1, settings, reference)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)
    assert totals["kl_reference"].item() == pytest.approx(log_ratios.sum().item(), rel=1e-4)


def test_a_part_is_whole_groups(mini_batch: MiniBatch) -> None:
    part = mini_batch.part(1, 1)
    assert [sequence.completion_ids for sequence in part.sequences] == COMPLETIONS[3:]
    assert part.advantages_GK.tolist() == [[2.0, -1.0, -1.0]]
    assert part.rewards_GK is not None and part.rewards_GK.tolist() == [[5.0, 2.0, 2.0]]
    assert torch.equal(part.old_logprobs_NT, mini_batch.old_logprobs_NT[3:])
    assert part.counts().tolist() == [8, 3]


def test_the_first_bad_tensor_is_named() -> None:
    good, bad = torch.ones(2), torch.tensor([0.0, math.inf])
    assert first_nonfinite([("a", good), ("b", None), ("c", bad), ("d", bad)]) == "c"
    assert first_nonfinite([("a", good), ("b", None)]) is None
