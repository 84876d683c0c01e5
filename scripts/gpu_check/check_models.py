"""Models of the true shapes with random weights, texts for them, and updates. They need no hub and no data."""

import random
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from grace_exp.config.backbone import ShapeConfig
from grace_exp.config.compose import compose_config
from grace_exp.config.root import GraceConfig
from grace_exp.data.prompts import Prompt
from grace_exp.policy.packing import TextSequence
from grace_exp.policy.policy import Policy
from grace_exp.policy.tiny import tiny_model
from grace_exp.training.plan.dimensions import planned_dimensions
from grace_exp.training.plan.run_plan import RunPlan, plan_run, with_planned_budgets
from grace_exp.training.plan.this_device import device_name, total_memory

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
BACKBONES = ("qwen25_1_5b", "qwen25_3b", "qwen3_4b") if CUDA else ("tiny",)
K = 8
PROMPT, RATIONALE = (160, 500) if CUDA else (20, 30)
"""Mean lengths, tokens."""


def run_config(backbone: str, *overrides: str) -> GraceConfig:
    """Return the settings of the paper's run on this GPU; on a CPU those of the tiny run."""
    experiment = ["+experiment=qwen_sup", "hardware=gpu"] if CUDA else ["+experiment=demo_tiny"]
    return compose_config([*experiment, f"backbone={backbone}", "logger=csv", *overrides], Path("runs/gpu_check"))


def planned(config: GraceConfig) -> tuple[GraceConfig, RunPlan]:
    """Return the settings with token budgets for this device, and the plan."""
    accelerator = "gpu" if CUDA else "cpu"
    memory = total_memory(accelerator)
    assert memory is not None
    plan = plan_run(config, planned_dimensions(config.backbone), memory, device=device_name(accelerator))
    return with_planned_budgets(config, plan), plan


def random_model(backbone: str, *, checkpointing: bool = False, attention: str = "sdpa") -> Any:
    """Return a causal language model in float32 on the device."""
    if backbone == "tiny":
        model: Any = tiny_model(0)
    else:
        shape = run_config(backbone).backbone.shape
        assert shape is not None
        torch.manual_seed(0)
        with torch.device(DEVICE):
            model = _of_shape(shape)
    model.set_attn_implementation(attention)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.to(DEVICE).train()


def _of_shape(shape: ShapeConfig) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

    kinds = ((Qwen3Config, Qwen3ForCausalLM), (Qwen2Config, Qwen2ForCausalLM), (LlamaConfig, LlamaForCausalLM))
    configuration, model = kinds[0 if shape.qk_norm else 1 if shape.qkv_bias else 2]
    return model(
        configuration(
            vocab_size=shape.vocabulary,
            hidden_size=shape.hidden,
            intermediate_size=shape.intermediate,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            tie_word_embeddings=shape.tied,
            max_position_embeddings=32768,
        )
    )


def policy(model: Any, config: GraceConfig, **hardware: Any) -> Policy:
    """Return a policy with the run's hardware settings; keywords change them."""
    return Policy(model, config.backbone.pooling, replace(config.hardware, **hardware), pad_token_id=0)


def groups(count: int, *, seed: int = 0, rationale: int = RATIONALE, k: int = K) -> list[TextSequence]:
    """Return groups of `k` rationales of about the mean length."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        prompt = Prompt(tuple(draw.randrange(3, 1000) for _ in range(draw.randint(PROMPT // 2, 3 * PROMPT // 2))), 2)
        for _ in range(k):
            length = draw.randint(max(1, rationale // 2), 3 * rationale // 2)
            found.append(TextSequence(prompt, tuple(draw.randrange(3, 1000) for _ in range(length))))
    return found


def autocast(enabled: bool = True) -> AbstractContextManager[Any]:
    """Return the bf16 autocast of Lightning's bf16-mixed."""
    return torch.autocast(DEVICE, torch.bfloat16, enabled=enabled, cache_enabled=False)


def optimizer(of: Policy, learning_rate: float) -> torch.optim.AdamW:
    """Return the run's optimizer."""
    return torch.optim.AdamW(of.trainable_parameters(), lr=learning_rate, betas=(0.9, 0.999), fused=CUDA)


def update(of: Policy, chosen: torch.optim.Optimizer, sequences: list[TextSequence], *, bf16: bool = True) -> float:
    """Make one update that raises the sequences' log-probs; return their mean before it."""
    total, tokens = 0.0, sum(len(one.completion_ids) for one in sequences)
    of.model.train()
    with autocast(bf16):
        for forward in of.passes(sequences, of.hardware.train_budget):
            summed = forward.logprobs_P.sum()
            (-summed / tokens).backward()
            total += float(summed.detach())
    torch.nn.utils.clip_grad_norm_(of.trainable_parameters(), 1.0)
    chosen.step()
    chosen.zero_grad()
    return total / tokens


def synchronize() -> None:
    """Wait for the GPU."""
    if CUDA:
        torch.cuda.synchronize()
