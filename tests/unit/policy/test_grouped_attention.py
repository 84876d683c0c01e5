"""Attention with shared keys equals eager attention, forward and backward, for every mask of the policy."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from grace_exp.policy.grouped_attention import NAME, attention_name, use_grouped_attention
from grace_exp.policy.packing import TextSequence, collate

Sequences = Callable[..., list[TextSequence]]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.15}
"""bfloat16 keeps 8 bits, and eager rounds in other places."""


def grouped(heads: int = 6, keys: int = 2, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024, hidden_size=96, intermediate_size=64, num_hidden_layers=2, num_attention_heads=heads,
        num_key_value_heads=keys, initializer_range=0.1, attn_implementation="sdpa",
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config).to(dtype).eval()
    use_grouped_attention(model)
    assert model.config._attn_implementation == NAME
    return model


def eager(model: Any) -> Any:
    other = copy.deepcopy(model)
    other.set_attn_implementation("eager")
    return other


def inputs(kind: str, sequences: Sequences, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Of a forward with shared keys, of the same by eager attention, and which tokens are real."""
    if kind == "causal":
        ids = torch.arange(3 * 20).view(3, 20)
        return {"input_ids": ids}, {"input_ids": ids}, torch.ones(3, 20, dtype=torch.bool)
    if kind == "padded":
        ids, mask = torch.arange(3 * 20).view(3, 20), torch.ones(3, 20, dtype=torch.long)
        mask[0, :7] = mask[2, :12] = 0
        positions = (mask.cumsum(1) - 1).clamp_(min=0)
        both = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        return both, both, mask.bool()
    asked = sequences([[5, 1, 9], [7, 7], [16, 3, 1]])
    batch = collate(
        asked, range(len(asked)), share_prompts=True, share_head=False, max_row_tokens=1000, pad_token_id=0,
        device=torch.device("cpu"),
    )  # fmt: skip
    dense = batch.attention_mask()
    assert dense is not None
    both = {"input_ids": batch.input_ids_BL, "position_ids": batch.position_ids_BL}
    added = torch.zeros(dense.shape, dtype=dtype).masked_fill_(~dense, torch.finfo(dtype).min)
    return both | {"attention_mask": dense}, both | {"attention_mask": added}, batch.block_BL >= 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bf16"])
@pytest.mark.parametrize("kind", ["causal", "padded", "packed"])
@pytest.mark.parametrize(("heads", "keys"), [(6, 2), (4, 1), (3, 3)])
def test_forward_and_backward_are_those_of_eager_attention(
    kind: str, dtype: torch.dtype, heads: int, keys: int, sequences: Sequences
) -> None:
    model = grouped(heads, keys, dtype)
    plain = eager(model)
    ours, theirs, real = inputs(kind, sequences, dtype)
    hidden = [m(**asked).last_hidden_state for m, asked in ((model.model, ours), (plain.model, theirs))]
    assert_close(hidden[0][real], hidden[1][real], atol=TOLERANCE[dtype], rtol=0)
    direction = torch.randn(hidden[0][real].shape, generator=torch.Generator().manual_seed(1))
    for states in hidden:
        (states[real].float() * direction).sum().backward()
    for (name, one), (_, other) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        if one.grad is not None:
            difference = (one.grad - other.grad).float().norm()
            assert difference <= (1e-4 if dtype == torch.float32 else 0.05) * other.grad.float().norm(), name


def test_decoding_behind_a_padded_cache_is_that_of_eager_attention() -> None:
    model = grouped()
    plain = eager(model)
    ids, mask = torch.arange(40).view(2, 20), torch.ones(2, 20, dtype=torch.long)
    mask[0, :7] = 0
    positions = (mask.cumsum(1) - 1).clamp_(min=0)

    @torch.no_grad()
    def logits(decoder: Any) -> Tensor:
        cache = DynamicCache(config=decoder.config)
        steps = []
        for start, stop in ((0, 15), (15, 16), (16, 20)):  # a prompt, one token, several tokens
            read = decoder(
                input_ids=ids[:, start:stop], attention_mask=mask[:, :stop], position_ids=positions[:, start:stop],
                past_key_values=cache, use_cache=True,
            )  # fmt: skip
            steps.append(read.logits[:, -1])
        return torch.stack(steps)

    assert_close(logits(model), logits(plain), atol=1e-5, rtol=0)


def test_nothing_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = []
    original = functional.scaled_dot_product_attention

    def watched(query: Tensor, key: Tensor, *rest: Any, **named: Any) -> Tensor:
        heads.append((query.shape[1], key.shape[1]))
        return original(query, key, *rest, **named)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", watched)
    mask = torch.ones(2, 8, dtype=torch.long)
    mask[0, :3] = 0
    grouped()(input_ids=torch.arange(16).view(2, 8), attention_mask=mask)
    assert heads == [(6, 2), (6, 2)]


def test_other_implementations_stay_and_results_have_sdpas_name() -> None:
    model = grouped()
    assert attention_name(model) == "sdpa"
    model.set_attn_implementation("eager")
    use_grouped_attention(model)
    assert attention_name(model) == "eager"
