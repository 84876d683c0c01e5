"""Gradient caching gives the plain gradient, with dropout too, however the batch is cut."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from grace_exp.config.backbone import PoolingConfig
from grace_exp.config.hardware import HardwareConfig
from grace_exp.data.batch import Role
from grace_exp.data.prompts import PromptBuilder
from grace_exp.policy.freezing import freeze_beyond_pooling
from grace_exp.policy.packing import TextSequence
from grace_exp.policy.policy import Policy
from grace_exp.training.baselines.gradient_cache import GradientCache
from grace_exp.training.baselines.infonce_loss import Contrast
from grace_exp.training.baselines.simcse import set_attention_dropout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TEXTS = ["a text", "another one", "the third, which is longer than the others", "four", "a fifth of them", "six of it"]
Gradients = dict[str, Tensor]


@pytest.fixture
def policy(model: "PreTrainedModel") -> Policy:
    return Policy(model.train(), PoolingConfig(), HardwareConfig(name="test", train_tokens=60), pad_token_id=0)


@pytest.fixture
def views(prompts: PromptBuilder) -> list[list[TextSequence]]:
    """Six texts twice; those of the second view with a rationale."""
    built = [prompts(Role.QUERY, text) for text in TEXTS]
    return [[TextSequence(p) for p in built], [TextSequence(p, (5, 6, 7 + i)) for i, p in enumerate(built)]]


def contrast(embeddings: Tensor) -> Contrast:
    return Contrast(embeddings[:6], embeddings[6:], embeddings[:0])


def gradients_of(policy: Policy, accumulate: Callable[[], None]) -> Gradients:
    policy.zero_grad()
    torch.manual_seed(0)
    accumulate()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def plain(policy: Policy, views: list[list[TextSequence]], budget: int) -> Gradients:
    """Every forward kept, one backward: what gradient caching is to equal."""

    def accumulate() -> None:
        found: dict[int, Tensor] = {}
        for number, view in enumerate(views):
            for forward in (policy.collate(view, indices) for indices in policy.plan(view, budget)):
                embeddings = policy(forward, ("text",), embedding_gradients=True)[0]["text"]
                found.update(zip([6 * number + i for i in forward.indices], embeddings, strict=True))
        contrast(torch.stack([found[i] for i in range(12)])).losses(0.05).mean().backward()

    return gradients_of(policy, accumulate)


def cached(policy: Policy, views: list[list[TextSequence]], budget: int, *, keep_all: bool = False) -> Gradients:
    lasts: list[bool] = []

    def accumulate() -> None:
        cache = GradientCache(policy, views, "text", budget, keep_all=keep_all)
        _, gradients = contrast(cache.embeddings_NH).gradients(0.05)

        def backward(loss: Tensor, last: bool) -> None:
            lasts.append(last)
            loss.backward()

        cache.backward(torch.cat([gradients.queries, gradients.positives]), backward)

    found = gradients_of(policy, accumulate)
    assert lasts == [False] * (len(lasts) - 1) + [True]
    return found


def assert_equal(found: Gradients, expected: Gradients) -> None:
    assert found.keys() == expected.keys()
    scale = max(gradient.abs().max().item() for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5 * scale, rtol=1e-5, msg=name)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("budget", [10_000, 60, 1], ids=["whole", "some", "each"])
def test_gradient_caching_equals_the_plain_gradient(policy: Policy, views, dropout: float, budget: int) -> None:
    set_attention_dropout(policy, dropout)
    expected = plain(policy, views, budget)
    assert max(gradient.abs().max().item() for gradient in expected.values()) > 1e-3
    assert_equal(cached(policy, views, budget), expected)
    assert_equal(cached(policy, views, budget, keep_all=True), expected)


def test_without_dropout_the_cut_changes_nothing(policy: Policy, views) -> None:
    assert_equal(cached(policy, views, 1), plain(policy, views, 10_000))


def test_each_text_is_computed_with_gradients_once(policy: Policy, views) -> None:
    calls: list[bool] = []
    policy.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    cached(policy, views, 1)
    assert (calls.count(False), calls.count(True)) == (11, 12)  # the last one's first forward serves
    calls.clear()
    cached(policy, views[:1] + views[:1], 10_000, keep_all=True)
    assert calls == [True, True]


def test_the_generator_goes_on_after_the_way_back_as_if_there_had_been_none(policy: Policy, views) -> None:
    set_attention_dropout(policy, 0.4)
    torch.manual_seed(0)
    cache = GradientCache(policy, views, "text", 1)
    before = torch.get_rng_state()
    cache.backward(torch.ones_like(cache.embeddings_NH), lambda loss, last: loss.backward())
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_makes_two_views_of_a_text_differ_and_evaluation_does_not(policy: Policy, views) -> None:
    twice = [views[0], views[0]]
    set_attention_dropout(policy, 0.4)
    first, second = GradientCache(policy, twice, "text", 10_000).embeddings_NH.chunk(2)
    assert (first - second).abs().amax(dim=1).min().item() > 1e-3
    torch.testing.assert_close(*(policy.score(views[0], ("text",)).embeddings["text"] for _ in range(2)))


@pytest.mark.parametrize(
    ("layer", "frozen"), [(-1, set()), (-2, {"layers.1", "norm"}), (0, {"layers.0", "layers.1", "norm"})]
)
def test_what_remains_trainable_is_what_an_embedding_depends_on(model, views, layer: int, frozen: set[str]) -> None:
    policy = Policy(model.train(), PoolingConfig(layer=layer), HardwareConfig(name="test"), pad_token_id=0)
    freeze_beyond_pooling(policy)
    names = {name for name, p in policy.named_parameters() if not p.requires_grad}
    assert {
        part for part in ("layers.0", "layers.1", "norm") if any(f"model.{part}." in name for name in names)
    } == frozen
    gradients = cached(policy, views, 10_000)
    assert gradients.keys() == {name for name, p in policy.named_parameters() if p.requires_grad}
    assert all(bool(gradient.any()) for gradient in gradients.values())
