import math
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from grace_exp.config.backbone import PoolingConfig
from grace_exp.config.hardware import HardwareConfig
from grace_exp.config.objective import KlConfig, ObjectiveConfig
from grace_exp.data.batch import Role
from grace_exp.data.prompts import PromptBuilder
from grace_exp.policy.packing import TextSequence
from grace_exp.policy.policy import Policy
from grace_exp.policy.reference import Reference
from grace_exp.training.update import MiniBatch, accumulate_gradients, first_nonfinite

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COMPLETIONS = [(5, 6, 7, 2), (8, 2), (9, 10, 11, 12, 13, 2), (14, 2), (15, 16, 2), (17, 18, 19)]
TOKENS = sum(map(len, COMPLETIONS))


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
    return MiniBatch(sequences, torch.tensor([1.0, -0.5, -0.5, 2.0, -1.0, -1.0]), old)


def run(policy: Policy, mini_batch: MiniBatch, budget: int, reference: Reference | None = None, **objective):
    """Gradients, sums and the `last` flags of one pass."""
    config = ObjectiveConfig(**objective)
    flags = []

    def backward(loss: Tensor, last: bool) -> None:
        flags.append(last)
        loss.backward()

    policy.zero_grad()
    totals = accumulate_gradients(
        policy, reference, mini_batch, config, token_budget=budget, tokens=TOKENS, backward=backward
    )
    return {name: p.grad.clone() for name, p in policy.named_parameters()}, totals, flags


def plain_loss(policy: Policy, mini_batch: MiniBatch, clip: float) -> Tensor:
    """The token mean of the clipped surrogate, a sequence at a time, from whole logits."""
    terms = []
    for sequence, advantage, old in zip(
        mini_batch.sequences, mini_batch.advantages, mini_batch.old_logprobs, strict=True
    ):
        prompt = len(sequence.prompt.token_ids)
        ids = torch.tensor([[*sequence.prompt.token_ids, *sequence.completion_ids]])
        logits = policy.model(ids).logits[0, prompt - 1 : -1] / sequence.temperature
        logprobs = logits.log_softmax(-1)[range(len(logits)), ids[0, prompt:]]
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
        gradients, totals, flags = run(policy, mini_batch, budget)
        torch.testing.assert_close(gradients, wanted, rtol=1e-4, atol=1e-6)
        assert totals["loss"].item() / TOKENS == pytest.approx(expected.item(), abs=1e-5)
        assert flags == [False] * (micro_batches - 1) + [True]


def test_the_penalty_enters_the_loss_and_reads_the_reference(policy: Policy, mini_batch: MiniBatch) -> None:
    reference = Reference(policy)
    with torch.no_grad():
        policy.model.get_output_embeddings().weight.mul_(1.1)
    kl = KlConfig(coefficient=0.5, estimator="k2")
    _, totals, _ = run(policy, mini_batch, 10_000, reference, kl=kl)
    assert totals["kl_reference"].item() > 0.01
    assert totals["loss"].item() == pytest.approx((totals["surrogate"] + 0.5 * totals["kl_reference"]).item(), rel=1e-5)
    assert all(parameter.grad is None for parameter in reference.parameters())


def test_the_first_bad_tensor_is_named() -> None:
    good, bad = torch.ones(2), torch.tensor([0.0, math.inf])
    assert first_nonfinite([("a", good), ("b", None), ("c", bad), ("d", bad)]) == "c"
    assert first_nonfinite([("a", good), ("b", None)]) is None
