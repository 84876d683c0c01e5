from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from peft import PeftModel
from torch import Tensor, nn

from grace_exp.config.backbone import BackboneConfig, LoraConfig, PoolingConfig
from grace_exp.policy.load_backbone import load_backbone
from grace_exp.policy.packing import MicroBatch, TextSequence
from grace_exp.policy.policy import Policy
from grace_exp.policy.reference import Reference

GROUPS = [[5, 1], [7]]
Make = Callable[..., Policy]
Sequences = Callable[..., list[TextSequence]]


@pytest.fixture(params=["full", "lora"])
def start(request: pytest.FixtureRequest, tmp_path: Path, policy: Make) -> Policy:
    """A policy before its first update."""
    lora = LoraConfig(rank=4) if request.param == "lora" else None
    config = BackboneConfig(name="tiny", source="tiny", lora=lora)
    return policy(load_backbone(config, cache_dir=tmp_path, seed=0, dtype=torch.float32).model)


@torch.no_grad()
def update(policy: Policy) -> None:
    torch.manual_seed(0)
    for parameter in policy.trainable_parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.1)


def batch(policy: Policy, sequences: Sequences) -> MicroBatch:
    return policy.collate(asked := sequences(GROUPS), range(len(asked)))


def flat_plain(model: nn.Module, batch: MicroBatch, sequences: Sequences, plain: Any) -> Tensor:
    found = [plain(model, sequence, PoolingConfig()).logprobs for sequence in sequences(GROUPS)]
    return torch.stack([found[o][k] for o, k in zip(batch.owners_P.tolist(), batch.offsets_P.tolist(), strict=True)])


@torch.no_grad()
def test_reference_gives_the_initial_logprobs_after_updates(start: Policy, sequences: Sequences, plain: Any) -> None:
    reference = Reference(start)
    rows = batch(start, sequences)
    initial = flat_plain(start.model, rows, sequences, plain)
    update(start)
    torch.testing.assert_close(reference(rows), initial, atol=1e-5, rtol=0)
    assert (start(rows)[1] - initial).abs().max() > 0.1  # the policy itself has moved


@torch.no_grad()
def test_adapters_off_is_the_base_model(tmp_path: Path, policy: Make, sequences: Sequences, plain: Any) -> None:
    def load(lora: LoraConfig | None) -> Any:
        config = BackboneConfig(name="tiny", source="tiny", lora=lora)
        return load_backbone(config, cache_dir=tmp_path, seed=0, dtype=torch.float32).model.eval()

    adapted = policy(load(LoraConfig(rank=4)))
    rows = batch(adapted, sequences)
    update(adapted)
    expected = flat_plain(load(None), rows, sequences, plain)
    torch.testing.assert_close(Reference(adapted)(rows), expected, atol=1e-5, rtol=0)
    assert not torch.allclose(adapted(rows)[1], expected, atol=0.1)  # and the adapters are on again


def test_reference_holds_parameters_only_where_it_must(start: Policy) -> None:
    reference = Reference(start)
    held = list(reference.parameters())
    if isinstance(start.model, PeftModel):
        assert held == []
    else:
        assert len(held) == len(list(start.parameters()))
        assert not any(parameter.requires_grad for parameter in held)
        own = {parameter.data_ptr() for parameter in start.parameters()}
        assert not any(parameter.data_ptr() in own for parameter in held)


def test_reference_stays_out_of_checkpoints_and_training_mode(start: Policy) -> None:
    class Both(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.policy = start
            self.reference = Reference(start)

    both = Both().train()
    assert both.policy.training
    assert not any(module.training for module in both.reference.modules())
    assert both.reference.state_dict() == {}
    assert all(name.startswith("policy.") for name in both.state_dict())
    assert {id(p) for p in both.parameters() if p.requires_grad} == {id(p) for p in start.trainable_parameters()}


def test_reference_ignores_dropout_and_leaves_the_policy_in_training_mode(start: Policy, sequences: Sequences) -> None:
    for layer in start.causal_lm.get_decoder().layers:
        layer.self_attn.attention_dropout = 0.5
    reference = Reference(start)
    start.model.train()
    rows = batch(start, sequences)
    assert torch.equal(reference(rows), reference(rows))
    assert not torch.equal(start(rows)[1], start(rows)[1])
    assert start.model.training


def test_asking_the_reference_between_forward_and_backward_changes_no_gradient(
    start: Policy, sequences: Sequences
) -> None:
    rows = batch(start, sequences)
    reference = Reference(start)
    update(start)

    def gradients(ask: bool) -> list[Tensor]:
        start.zero_grad()
        logprobs = start(rows)[1]
        if ask:
            assert not reference(rows).requires_grad
        logprobs.sum().backward()
        return [parameter.grad.clone() for parameter in start.trainable_parameters() if parameter.grad is not None]

    without, asked = gradients(False), gradients(True)
    assert len(without) == len(asked) == len(start.trainable_parameters())
    assert all(torch.equal(one, other) for one, other in zip(without, asked, strict=True))


def test_its_embeddings_and_scores_are_those_of_the_start(start: Policy, sequences: Sequences) -> None:
    asked = sequences(GROUPS)
    reference, first = Reference(start), start.score(asked)
    update(start)
    scored = reference.score(asked)
    torch.testing.assert_close(scored.logprobs_NT, first.logprobs_NT, atol=1e-6, rtol=0)
    torch.testing.assert_close(scored.embeddings, first.embeddings, atol=1e-6, rtol=0)
    torch.testing.assert_close(reference.embed(asked), first.embeddings, atol=1e-6, rtol=0)
    assert (start.score(asked).logprobs_NT - first.logprobs_NT).abs().max() > 0.1
