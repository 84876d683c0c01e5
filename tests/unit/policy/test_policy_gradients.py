from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from grace_exp.config.backbone import BackboneConfig, LoraConfig, PoolingConfig
from grace_exp.policy.load_backbone import load_backbone
from grace_exp.policy.packing import TextSequence
from grace_exp.policy.policy import Policy

GROUPS = [[5, 1, 9, 5], [7], [2, 2], [16, 3, 1], [4]]
Make = Callable[..., Policy]
Sequences = Callable[..., list[TextSequence]]


def weights(sequences: list[TextSequence]) -> list[Tensor]:
    """What each rationale token's log-prob counts in the loss, different for every token."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(len(sequence.completion_ids), generator=generator) for sequence in sequences]


def trained_gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            found[name] = parameter.grad.clone()
    model.zero_grad()
    return found


def policy_gradients(policy: Policy, sequences: list[TextSequence], token_budget: int = 100_000) -> dict[str, Tensor]:
    chosen = weights(sequences)
    for indices in policy.plan(sequences, token_budget):
        logprobs, mask = (batch := policy.collate(sequences, indices)).ragged(policy(batch)[1])
        weight = torch.nn.utils.rnn.pad_sequence([chosen[i] for i in indices], batch_first=True)
        (logprobs * weight * mask).sum().backward()
    return trained_gradients(policy.model)


def plain_gradients(model: nn.Module, sequences: list[TextSequence], plain: Any) -> dict[str, Tensor]:
    for sequence, weight in zip(sequences, weights(sequences), strict=True):
        (plain(model, sequence, PoolingConfig()).logprobs * weight).sum().backward()
    return trained_gradients(model)


def assert_equal_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    assert scale > 1  # there is something to compare
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name], gradient, atol=1e-5 * scale, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize(
    "settings",
    [
        {"packing": True},
        {"packing": False},
        {"packing": True, "logprob_chunk_tokens": 3},
        {"packing": False, "logprob_chunk_tokens": 3},
        {"packing": True, "max_row_tokens": 25},
    ],
    ids=str,
)
@pytest.mark.parametrize("token_budget", [100_000, 60])
def test_gradients_are_those_of_plain_forwards(
    model: nn.Module, policy: Make, sequences: Sequences, plain: Any, settings: dict[str, Any], token_budget: int
) -> None:
    model.train()
    asked = sequences(GROUPS, temperature=0.7)
    expected = plain_gradients(model, asked, plain)
    assert_equal_gradients(policy_gradients(policy(**settings), asked, token_budget), expected)


@pytest.mark.parametrize("kind", ["full", "selective"])
@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4)], ids=["full", "lora"])
def test_gradient_checkpointing_changes_no_gradient(
    tmp_path: Path, policy: Make, sequences: Sequences, lora: LoraConfig | None, kind: Any
) -> None:
    def gradients(checkpointing: Any) -> dict[str, Tensor]:
        config = BackboneConfig(name="tiny", source="tiny", gradient_checkpointing=checkpointing, lora=lora)
        model = load_backbone(config, cache_dir=tmp_path, seed=0, dtype=torch.float32).model.train()
        again = checkpointing != "off"
        assert model.is_gradient_checkpointing is again
        calls = []
        layer: Any = next(m for name, m in model.named_modules() if name.endswith("layers.0.mlp"))
        layer.register_forward_pre_hook(lambda *_: calls.append(1))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.add_(0.1)
        found = policy_gradients(policy(model), sequences(GROUPS))
        micro_batches = len(policy(model).plan(sequences(GROUPS), 100_000))
        assert len(calls) == micro_batches * (2 if again else 1)  # it is on: layers are computed again
        return found

    assert_equal_gradients(gradients(kind), gradients("off"))


def test_lora_gradients_are_those_of_plain_forwards(
    tmp_path: Path, policy: Make, sequences: Sequences, plain: Any
) -> None:
    config = BackboneConfig(name="tiny", source="tiny", lora=LoraConfig(rank=4))
    model = load_backbone(config, cache_dir=tmp_path, seed=0, dtype=torch.float32).model.train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1)
    expected = plain_gradients(model, sequences(GROUPS), plain)
    assert all("lora" in name for name in expected)
    assert_equal_gradients(policy_gradients(policy(model), sequences(GROUPS)), expected)
