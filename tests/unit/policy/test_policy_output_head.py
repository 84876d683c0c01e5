"""Logits are float32 in every precision, and so are the log-probs and gradients made from them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from grace_exp.policy.logprobs import token_logprobs
from grace_exp.policy.output_head import Float32Head, use_float32_head

VOCABULARY, HIDDEN, TOKENS = 500, 64, 40


def head(dtype: torch.dtype = torch.float32) -> Float32Head:
    torch.manual_seed(0)
    made = Float32Head(HIDDEN, VOCABULARY, bias=False)
    nn.init.normal_(made.weight)  # logits as large as trained models have: some 20
    return made.to(dtype)


def states() -> Tensor:
    return torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(1))


def targets() -> Tensor:
    return torch.randint(0, VOCABULARY, (TOKENS,), generator=torch.Generator().manual_seed(2))


def in_float64(hidden: Tensor, weight: Tensor) -> Tensor:
    """Log-probs by the definition, from operands as bf16 rounds them."""
    logits = hidden.bfloat16().double() @ weight.bfloat16().double().T
    return logits.log_softmax(-1)[torch.arange(TOKENS), targets()]


@pytest.mark.parametrize("chunk", [7, 100])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=["autocast", "bf16 weights"])
def test_log_probs_are_those_of_float64(weights: torch.dtype, chunk: int) -> None:
    module = head(weights)
    hidden = states().to(weights)
    with torch.autocast("cpu", torch.bfloat16, enabled=weights == torch.float32):
        found = token_logprobs(hidden, targets(), torch.ones(TOKENS), module, chunk=chunk)
    expected = in_float64(hidden, module.weight)
    assert found.dtype == torch.float32
    assert_close(found.double(), expected, atol=2e-5, rtol=0)
    rounded = nn.functional.linear(hidden.bfloat16(), module.weight.bfloat16()).float().log_softmax(-1)
    off = (rounded[torch.arange(TOKENS), targets()].double() - expected).abs()
    assert off.max() > 0.01  # what a plain bf16 layer does to the same numbers


def test_gradients_are_those_of_float64_within_the_rounding_of_their_operands() -> None:
    module, hidden = head(), states().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        token_logprobs(hidden, targets(), torch.ones(TOKENS), module, chunk=7).sum().backward()
    exact = [states().double().requires_grad_(), module.weight.detach().double().requires_grad_()]
    in_float64(*exact).sum().backward()
    assert hidden.grad is not None and module.weight.grad is not None
    assert hidden.grad.dtype == module.weight.grad.dtype == torch.float32
    for found, wanted in ((hidden.grad, exact[0].grad), (module.weight.grad, exact[1].grad)):
        assert wanted is not None
        assert (found - wanted).norm() / wanted.norm() < 2**-8


def test_float32_without_autocast_is_a_plain_linear_layer() -> None:
    module = head()
    assert torch.equal(module(states()), nn.functional.linear(states(), module.weight))


def test_hidden_states_of_any_shape_and_a_bias_are_taken() -> None:
    torch.manual_seed(0)
    module = Float32Head(4, 9)
    with torch.autocast("cpu", torch.bfloat16):
        logits = module(torch.ones(2, 3, 4))
    assert logits.shape == (2, 3, 9)
    assert_close(logits, nn.functional.linear(torch.ones(2, 3, 4), module.weight.bfloat16().float(), module.bias))


def test_a_frozen_head_gets_no_gradient() -> None:
    module, hidden = head().requires_grad_(False), states().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        module(hidden).sum().backward()
    assert module.weight.grad is None
    assert hidden.grad is not None


def test_a_models_head_is_changed_in_place_with_its_tied_weight_and_hooks(model: Any) -> None:
    before, called = model.get_output_embeddings(), []
    before.register_forward_hook(lambda *_: called.append(True))
    names = list(model.state_dict())
    use_float32_head(model)
    assert model.get_output_embeddings() is before
    assert before.weight is model.get_input_embeddings().weight
    assert list(model.state_dict()) == names
    with torch.autocast("cpu", torch.bfloat16):
        assert model(torch.tensor([[3, 4]])).logits.dtype == torch.float32
    assert called
