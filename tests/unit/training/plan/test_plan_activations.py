"""The planned memory of activations against that of a real forward and backward."""

import weakref
from typing import Any

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from grace_exp.config.backbone import LoraConfig
from grace_exp.policy.logprobs import token_logprobs
from grace_exp.policy.output_head import use_float32_head
from grace_exp.training.plan.activations import Attention, Forward, head_bytes, training_activations
from grace_exp.training.plan.dimensions import Dimensions, dimensions_of

MODELS = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
}
ROWS, WIDTH, RANK = 2, 256, 8


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that were made since it started and still live, and their largest sum."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._living: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(one.untyped_storage()) for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for made in tree_leaves(result):
            if isinstance(made, torch.Tensor):
                storage = made.untyped_storage()
                if id(storage) not in given and id(storage) not in self._living:
                    self._follow(storage)
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)

        def gone(_: Any) -> None:
            self._living.pop(key)
            self.now -= size

        self._living[key] = weakref.ref(storage, gone)


def small(kind: str, lora: bool) -> tuple[nn.Module, Any, Dimensions]:
    """A model of four layers, what is trained of it, and its dimensions; gradients are there already."""
    configuration, model = MODELS[kind]
    config: Any = configuration(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=32,
        tie_word_embeddings=True,
    )
    base: Any = model(config)
    use_float32_head(base)
    trained: Any = base
    if lora:
        trained = get_peft_model(base, PeftLoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM"))
    for weight in trained.parameters():
        weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
    dimensions = dimensions_of(config, LoraConfig(rank=RANK) if lora else None)
    assert dimensions is not None
    return trained.train(), base, dimensions


def measured(base: Any, *, bf16: bool, attention: Attention) -> tuple[int, int]:
    """Bytes after the forward, and at most."""
    ids = torch.zeros(ROWS, WIDTH, dtype=torch.long)
    mask = None
    if attention == "mask":
        mask = torch.ones(WIDTH, WIDTH, dtype=torch.bool).tril().expand(ROWS, 1, WIDTH, WIDTH).contiguous()
    with LiveBytes() as live:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=False):
            hidden = base.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        stored = live.now
        hidden.sum().backward()
    return stored, live.peak


CASES = [
    ("qwen2", False, False, True, "causal"),
    ("qwen2", False, True, False, "mask"),
    ("qwen2", True, True, True, "causal"),
    ("qwen2", True, False, False, "causal"),
    ("qwen3", False, True, True, "causal"),
    ("qwen3", False, False, False, "causal"),
    ("llama", False, True, False, "causal"),
    ("llama", True, True, False, "causal"),
]


@pytest.mark.parametrize(("kind", "lora", "bf16", "checkpointing", "attention"), CASES)
def test_activations_are_those_of_a_measured_forward_and_backward(
    kind: str, lora: bool, bf16: bool, checkpointing: bool, attention: Attention
) -> None:
    _, base, dimensions = small(kind, lora)
    if checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    stored, peak = measured(base, bf16=bf16, attention=attention)
    forward = Forward(ROWS * WIDTH, WIDTH, 2 if bf16 else 4, attention, "full" if checkpointing else "off")
    planned = training_activations(dimensions, forward)
    assert planned.stored == pytest.approx(stored, rel=0.05)
    assert planned.peak == pytest.approx(peak, rel=0.15)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("kind", list(MODELS))
def test_weights_are_counted_as_the_model_has_them(kind: str, lora: bool) -> None:
    trained, base, dimensions = small(kind, lora)
    own = sum(weight.numel() for name, weight in base.named_parameters() if "lora_" not in name)
    assert dimensions.parameters == own
    assert dimensions.trained == sum(weight.numel() for weight in trained.parameters() if weight.requires_grad)


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize("lora", [True, False])
def test_the_output_head_takes_what_is_planned(lora: bool, bf16: bool, gradients: bool) -> None:
    config = Qwen2Config(vocab_size=20_000, hidden_size=128, intermediate_size=64, num_hidden_layers=1)
    model, chunk, tokens = Qwen2ForCausalLM(config), 128, 512
    use_float32_head(model)
    head = model.get_output_embeddings()
    assert head is not None
    head.requires_grad_(not lora)
    head.weight.grad = torch.zeros_like(head.weight) if not lora else None
    hidden = torch.randn(tokens, 128, requires_grad=True)
    with LiveBytes() as live, torch.set_grad_enabled(gradients):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=False):
            found = token_logprobs(hidden, torch.zeros(tokens).long(), torch.ones(tokens), head, chunk=chunk)
        if gradients:
            found.sum().backward()
    dimensions = dimensions_of(config, LoraConfig() if lora else None)
    assert dimensions is not None
    assert head_bytes(dimensions, chunk, 2 if bf16 else 4, gradients=gradients) == pytest.approx(live.peak, rel=0.15)
