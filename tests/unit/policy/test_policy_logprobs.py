import pytest
import torch
from torch import nn

from grace_exp.policy.logprobs import token_logprobs, token_logprobs_and_entropy
from grace_exp.policy.output_head import Float32Head, OneDnnHead


def test_uniform_logits_give_the_logarithm_of_the_vocabulary() -> None:
    head = nn.Linear(4, 100, bias=False)
    nn.init.zeros_(head.weight)
    found = token_logprobs(torch.randn(7, 4), torch.arange(7), torch.ones(7), head, chunk=3)
    torch.testing.assert_close(found, torch.full((7,), -torch.log(torch.tensor(100.0)).item()))


def test_extreme_logits_do_not_overflow() -> None:
    head = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1e4], [-1e4]]))
    found = token_logprobs(torch.ones(2, 1), torch.tensor([0, 1]), torch.tensor([1.0, 0.5]), head, chunk=8)
    torch.testing.assert_close(found, torch.tensor([0.0, -4e4]))


def test_bf16_hidden_states_give_float32_logprobs() -> None:
    head = nn.Linear(8, 50, bias=False, dtype=torch.bfloat16)
    hidden = torch.randn(5, 8, dtype=torch.bfloat16)
    found = token_logprobs(hidden, torch.arange(5), torch.ones(5), head, chunk=2)
    expected = head(hidden).float().log_softmax(-1)[torch.arange(5), torch.arange(5)]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


def test_no_tokens_give_no_logprobs() -> None:
    found = token_logprobs(
        torch.zeros(0, 4, requires_grad=True), torch.zeros(0, dtype=torch.long), torch.ones(0), nn.Linear(4, 9), chunk=3
    )
    assert found.shape == (0,)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("chunk", [2, 100])
def test_entropy_is_that_of_the_tempered_distribution_and_has_its_gradient(chunk: int) -> None:
    head = nn.Linear(4, 9, bias=False, dtype=torch.float64).requires_grad_(False)
    hidden = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    temperatures = torch.tensor([0.5, 1.0, 2.0, 0.7, 1.0], dtype=torch.float64)
    logprobs, entropy = token_logprobs_and_entropy(hidden, torch.arange(5), temperatures, head, chunk=chunk)
    assert torch.equal(logprobs, token_logprobs(hidden, torch.arange(5), temperatures, head, chunk=chunk))
    expected = torch.distributions.Categorical(logits=head(hidden) / temperatures[:, None]).entropy()
    torch.testing.assert_close(entropy, expected.float(), check_dtype=False)
    (found,) = torch.autograd.grad(entropy.sum(), hidden)
    (wanted,) = torch.autograd.grad(expected.sum(), hidden)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [Float32Head, OneDnnHead])
@pytest.mark.parametrize("chunk", [2, 100])
@pytest.mark.parametrize("temperatures", [[1.0] * 5, [0.5, 1.0, 2.0, 0.7, 1.0]], ids=["1", "several"])
def test_a_head_that_does_not_train_gives_the_same_gradient(
    kind: type[Float32Head], chunk: int, temperatures: list[float]
) -> None:
    torch.manual_seed(0)
    head = kind(16, 60, bias=False).requires_grad_(False)
    nn.init.normal_(head.weight, std=3)
    hidden, weights = torch.randn(5, 16, requires_grad=True), torch.randn(5)
    tempered, targets = torch.tensor(temperatures), torch.arange(5)
    found = token_logprobs(hidden, targets, tempered, head, chunk=chunk)
    exact = hidden.detach().double().requires_grad_()
    logits = exact @ head.weight.double().T / tempered.double()[:, None]
    expected = logits.log_softmax(-1)[torch.arange(5), targets]
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    (gradient,) = torch.autograd.grad((found * weights).sum(), hidden)
    (wanted,) = torch.autograd.grad((expected * weights.double()).sum(), exact)
    torch.testing.assert_close(gradient.double(), wanted, rtol=1e-4, atol=1e-5)


def test_a_head_that_does_not_train_is_not_computed_again() -> None:
    head = Float32Head(16, 60, bias=False).requires_grad_(False)
    calls = []
    head.register_forward_pre_hook(lambda *_: calls.append(1))
    hidden = torch.randn(5, 16, requires_grad=True)
    token_logprobs(hidden, torch.arange(5), torch.ones(5), head, chunk=2).sum().backward()
    assert len(calls) == 3
    empty = token_logprobs(hidden[:0], torch.arange(0), torch.ones(0), head, chunk=2)
    assert empty.shape == (0,)
