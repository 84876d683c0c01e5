"""oneDNN's products equal PyTorch's up to rounding, forward and backward, and are used where they are faster."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from grace_exp.config.backbone import BackboneConfig, LoraConfig
from grace_exp.policy import onednn_linear
from grace_exp.policy.load_backbone import load_backbone
from grace_exp.policy.onednn_linear import OneDnnLinear, resolved_library, use_library
from grace_exp.policy.output_head import Float32Head, OneDnnHead
from grace_exp.policy.packing import TextSequence
from grace_exp.policy.policy import Policy
from grace_exp.policy.recomputation import checkpointing_arguments

Make = Callable[..., Policy]
Sequences = Callable[..., list[TextSequence]]
pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch is built without oneDNN")


@pytest.fixture(autouse=True)
def all_products_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn_linear, "_LEAST_WORK", 1)


def layer(*, bias: bool = True) -> OneDnnLinear:
    torch.manual_seed(0)
    return OneDnnLinear(70, 130, bias=bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(70,), (1, 70), (3, 11, 70), (0, 70)], ids=str)
def test_results_and_gradients_are_those_of_float64(shape: tuple[int, ...], bias: bool) -> None:
    module = layer(bias=bias)
    exact: Any = copy.deepcopy(module).double()
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    single, double = inputs.clone().requires_grad_(), inputs.double().requires_grad_()
    one, other = module(single), exact(double)
    assert_close(one.double(), other, atol=1e-5, rtol=0)
    weights = torch.randn(one.shape, generator=torch.Generator().manual_seed(2))
    (one * weights).sum().backward()
    (other * weights.double()).sum().backward()
    assert_close(single.grad, double.grad, atol=1e-4, rtol=0, check_dtype=False)
    for (_, found), (_, expected) in zip(module.named_parameters(), exact.named_parameters(), strict=True):
        assert_close(found.grad, expected.grad, atol=1e-4, rtol=0, check_dtype=False)


def test_only_asked_for_gradients_are_computed() -> None:
    module = layer().requires_grad_(False)
    inputs = torch.randn(5, 70, requires_grad=True)
    module(inputs).sum().backward()
    assert inputs.grad is not None
    assert module.weight.grad is None
    trained = layer()
    trained(torch.randn(5, 70)).sum().backward()
    assert trained.weight.grad is not None


def test_gradients_flow_from_views_that_are_not_contiguous() -> None:
    module = layer()
    inputs = torch.randn(70, 9).t().requires_grad_()
    expected = torch.autograd.grad(nn.functional.linear(inputs, module.weight, module.bias).t()[3].sum(), inputs)[0]
    found = torch.autograd.grad(module(inputs).t()[3].sum(), inputs)[0]
    assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_pytorchs(dtype: torch.dtype) -> None:
    module = layer().to(dtype)
    inputs = torch.randn(5, 70, dtype=dtype)
    assert torch.equal(module(inputs), nn.functional.linear(inputs, module.weight, module.bias))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer()(torch.randn(5, 70)).dtype == torch.bfloat16


def test_a_pickled_layer_computes_where_the_operator_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    module, inputs = layer(), torch.randn(5, 70, generator=torch.Generator().manual_seed(1))
    expected = module(inputs)
    monkeypatch.setattr(onednn_linear, "_is_there", lambda: False)
    monkeypatch.setattr(onednn_linear, "_product", None)
    assert_close(pickle.loads(pickle.dumps(module))(inputs), expected, atol=1e-5, rtol=0)


def test_small_products_are_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn_linear, "_LEAST_WORK", 2**19)
    monkeypatch.setattr(onednn_linear, "_product", None)  # would fail
    assert layer()(torch.randn(5, 70)).shape == (5, 130)


@pytest.mark.parametrize(
    ("capability", "vendor", "library"),
    [
        ("AVX512", "AuthenticAMD", "onednn"),
        ("AVX512", "GenuineIntel", "torch"),
        ("AVX512", None, "torch"),
        ("AVX2", "AuthenticAMD", "torch"),
    ],
)
def test_auto_asks_the_cpu(monkeypatch: pytest.MonkeyPatch, capability: str, vendor: str | None, library: str) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(onednn_linear, "_vendor", lambda: vendor)
    assert resolved_library("auto") == library
    assert (resolved_library("torch"), resolved_library("onednn")) == ("torch", "onednn")


def adapted(folder: Path, checkpointing: Any = "off") -> Any:
    config = BackboneConfig(name="tiny", source="tiny", lora=LoraConfig(rank=4), gradient_checkpointing=checkpointing)
    model = load_backbone(config, cache_dir=folder, seed=0, dtype=torch.float32).model.train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1)
    return model


def found_by(policy: Policy, asked: list[TextSequence]) -> dict[str, Tensor]:
    policy.zero_grad()
    scored = policy.score(asked)
    for one in policy.passes(asked, 100_000):
        one.logprobs_P.sum().backward()
    gradients = {name: weight.grad.clone() for name, weight in policy.named_parameters() if weight.grad is not None}
    return gradients | {"logprobs": scored.logprobs_NT} | dict(scored.embeddings)


@pytest.mark.parametrize("checkpointing", ["off", "full", "selective"])
def test_a_policy_says_and_learns_the_same_with_either_library(
    tmp_path: Path, policy: Make, sequences: Sequences, checkpointing: Any
) -> None:
    model, asked = adapted(tmp_path, checkpointing), sequences([[5, 1, 9], [7], [16, 3, 1]], temperature=0.7)
    names = list(model.state_dict())
    expected = found_by(policy(model, linear="torch"), asked)
    chosen = policy(model, linear="onednn")
    kinds = {type(module) for module in model.modules()}
    assert {OneDnnLinear, OneDnnHead} <= kinds
    assert not {nn.Linear, Float32Head} & kinds
    found = found_by(chosen, asked)
    assert list(model.state_dict()) == names
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).norm() <= 1e-4 * value.norm(), name
    policy(model, linear="torch")
    assert not {OneDnnLinear, OneDnnHead} & {type(module) for module in model.modules()}


def test_selective_checkpointing_keeps_products() -> None:
    costly = checkpointing_arguments("selective")["context_fn"].args[0]
    assert torch.ops.mkldnn._linear_pointwise.default in costly


def test_use_library_leaves_other_layers_alone() -> None:
    class Own(nn.Linear):
        pass

    model: Any = nn.ModuleList([nn.Linear(2, 2), Own(2, 2), nn.Embedding(2, 2)])
    use_library(model, "onednn")
    assert [type(module) for module in model] == [OneDnnLinear, Own, nn.Embedding]
