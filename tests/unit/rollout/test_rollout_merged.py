import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import nn

from grace_exp.config.backbone import BackboneConfig, LoraConfig
from grace_exp.policy.load_backbone import load_backbone
from grace_exp.rollout.merged import MergedCopy
from grace_exp.rollout.protocol import Request


@pytest.fixture
def adapted(tmp_path: Path) -> PeftModel:
    config = BackboneConfig(name="tiny", source="tiny", lora=LoraConfig(rank=4, alpha=8.0))
    model = load_backbone(config, cache_dir=tmp_path, seed=3, dtype=torch.float32).model
    assert isinstance(model, PeftModel)
    return model.eval()


@torch.no_grad()
def update(model: nn.Module, seed: int) -> None:
    """What an optimizer does: every trained tensor moves."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


def logits(model: nn.Module) -> Any:
    with torch.no_grad():
        return model(torch.arange(3, 23)[None]).logits


def requests(prompts: list[tuple[int, ...]]) -> list[Request]:
    return [Request(prompt, 2, 10, 1.0, seed) for seed, prompt in enumerate(prompts)]


def test_merged_copy_computes_what_the_adapted_model_computes(adapted: PeftModel) -> None:
    before = logits(adapted)
    update(adapted, 0)
    merged = MergedCopy(adapted).model
    assert (logits(adapted) - before).abs().max() > 0.1  # the adapters matter
    torch.testing.assert_close(logits(merged), logits(adapted), atol=1e-4, rtol=0)
    assert not any("lora" in name for name, _ in merged.named_modules())


def test_refresh_follows_the_adapters_without_drift(adapted: PeftModel) -> None:
    copied = MergedCopy(adapted)
    for seed in range(20):
        update(adapted, seed)
        copied.refresh()
    torch.testing.assert_close(logits(copied.model), logits(adapted), atol=1e-4, rtol=0)
    fresh = MergedCopy(adapted).model.state_dict()
    for name, tensor in copied.model.state_dict().items():
        assert torch.equal(tensor, fresh[name]), name


def test_the_adapted_model_is_left_bit_for_bit(adapted: PeftModel) -> None:
    update(adapted, 0)
    before = copy.deepcopy(adapted.state_dict())
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    copied = MergedCopy(adapted)
    copied.refresh()
    for name, tensor in adapted.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert {name for name, parameter in adapted.named_parameters() if parameter.requires_grad} == trained


def test_tensors_without_adapters_are_shared_and_the_others_are_not(adapted: PeftModel) -> None:
    base: Any = adapted.get_base_model()
    merged: Any = MergedCopy(adapted).model
    own = {tensor.data_ptr() for tensor in base.parameters()}
    for name, parameter in merged.named_parameters():
        assert (parameter.data_ptr() in own) is not ("_proj" in name), name
    assert merged.lm_head.weight is merged.get_input_embeddings().weight is base.get_input_embeddings().weight


def test_the_first_rationales_come_from_the_adapters_as_they_are(
    adapted: PeftModel, engine: Any, prompts: list[tuple[int, ...]], plain_logprobs: Any
) -> None:
    writer = engine(adapted)
    update(adapted, 0)
    asked = requests(prompts)
    for request, answer in zip(asked, writer.generate(asked), strict=True):
        for completion in answer:
            expected = plain_logprobs(adapted, request, completion)
            np.testing.assert_allclose(completion.logprobs, expected.numpy(), atol=1e-4, rtol=0)


def test_an_update_reaches_the_rationales_at_the_next_sync(
    adapted: PeftModel, engine: Any, prompts: list[tuple[int, ...]], plain_logprobs: Any
) -> None:
    writer = engine(adapted)
    asked = requests(prompts)
    before = writer.generate(asked)
    update(adapted, 0)
    assert writer.generate(asked) == before  # the weights of the last sync: rollouts of one step come from one policy
    writer.sync(adapted)
    after = writer.generate(asked)
    assert after != before
    for request, answer in zip(asked, after, strict=True):
        for completion in answer:
            expected = plain_logprobs(adapted, request, completion)
            np.testing.assert_allclose(completion.logprobs, expected.numpy(), atol=1e-4, rtol=0)


def test_a_training_engine_that_slept_gave_back_its_merged_weights_and_writes_the_same(
    adapted: PeftModel, engine: Any, prompts: list[tuple[int, ...]]
) -> None:
    update(adapted, 0)
    writer = engine(adapted, training=True)
    writer.sleep()  # before it has written anything: nothing to give
    before = writer.generate(requests(prompts))
    merged = writer._merged.model
    adapted_weights = [weight for name, weight in merged.named_parameters() if name.endswith("_proj.weight")]
    writer.sleep()
    assert sum(weight.numel() for weight in adapted_weights) == 0
    assert writer.generate(requests(prompts)) == before
    assert sum(weight.numel() for weight in adapted_weights) > 0
    writer.sleep()
    update(adapted, 1)
    writer.sync(adapted)
    assert writer.generate(requests(prompts)) != before


def test_an_engine_of_fixed_weights_keeps_them_merged(
    adapted: PeftModel, engine: Any, prompts: list[tuple[int, ...]]
) -> None:
    writer = engine(adapted)
    writer.generate(requests(prompts))
    writer.sleep()  # an encoder sleeps after every call, and a server's calls are single texts
    assert all(weight.numel() for weight in writer._merged.model.parameters())


def test_writing_leaves_the_adapted_model_trainable_and_in_its_mode(
    adapted: PeftModel, engine: Any, prompts: list[tuple[int, ...]]
) -> None:
    adapted.train()
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    writer = engine(adapted)
    writer.generate(requests(prompts))
    writer.sync(adapted)
    assert adapted.training
    assert {name for name, parameter in adapted.named_parameters() if parameter.requires_grad} == trained
    adapted(torch.arange(3, 23)[None]).logits.sum().backward()
    assert all(p.grad is not None for p in adapted.parameters() if p.requires_grad)
