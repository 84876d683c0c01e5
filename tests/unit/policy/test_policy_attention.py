"""Packed rows by FlexAttention, padded widths and compiled layers give the results of plain rows."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask
from torch.testing import assert_close
from transformers import Qwen2Config, Qwen2ForCausalLM

from grace_exp.config.compose import compose_config
from grace_exp.errors import ConfigError
from grace_exp.policy import packed_check
from grace_exp.policy.attention import NAME, block_mask, use_flex_for_block_masks
from grace_exp.policy.compiled_layers import compile_layers
from grace_exp.policy.packing import TextSequence
from grace_exp.policy.policy import Policy

Make = Callable[..., Policy]
Sequences = Callable[..., list[TextSequence]]
GROUPS = [[5, 1, 9, 5], [7], [2, 2], [16, 3, 1], [4]]
REGION = "text_and_rationale"
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def assert_scores_equal(found: Policy, expected: Policy, asked: list[TextSequence], atol: float = 1e-5) -> None:
    one, other = found.score(asked), expected.score(asked)
    assert_close(one.embeddings[REGION], other.embeddings[REGION], atol=atol, rtol=0)
    assert_close(one.logprobs_NT, other.logprobs_NT, atol=atol, rtol=0)


def test_a_block_mask_is_the_dense_mask(policy: Make, sequences: Sequences) -> None:
    reader, asked = policy(), sequences([[5, 1, 9], [16, 3, 1]])
    batch = reader.collate(asked, range(len(asked)))
    dense = batch.attention_mask()
    assert dense is not None
    made = block_mask(batch.block_BL)
    rows, width = batch.block_BL.shape
    assert torch.equal(create_mask(made.mask_mod, rows, 1, width, width, device="cpu"), dense)


def test_flex_skips_blocks_that_are_masked(policy: Make, sequences: Sequences) -> None:
    asked = sequences([[200] * 4])
    batch = policy(max_row_tokens=4096).collate(asked, range(4))
    assert block_mask(batch.block_BL).sparsity() > 30  # per cent of blocks that no kernel touches; causal alone: 43


def test_packed_rows_by_flex_are_packed_rows_behind_a_mask(policy: Make, model: Any, sequences: Sequences) -> None:
    asked = sequences(GROUPS, temperature=0.7)
    expected = policy().score(asked)
    flex = policy(packed_attention="flex")
    assert model.config._attn_implementation == NAME
    found = flex.score(asked)
    assert_close(found.embeddings[REGION], expected.embeddings[REGION], atol=1e-5, rtol=0)
    assert_close(found.logprobs_NT, expected.logprobs_NT, atol=1e-5, rtol=0)
    assert_scores_equal(policy(packing=False), policy(), asked)  # plain rows of the same model go on with SDPA


@pytest.mark.parametrize("heads", [6, 4], ids=["three heads a key", "two heads a key"])
def test_flex_takes_any_number_of_heads_a_key_and_autocast(policy: Make, sequences: Sequences, heads: int) -> None:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=1024, hidden_size=96, intermediate_size=64, num_hidden_layers=2, num_attention_heads=heads,
        num_key_value_heads=2, initializer_range=0.1,
    )  # fmt: skip
    model: Any = Qwen2ForCausalLM(config).eval()
    asked = sequences(GROUPS)
    mask, flex = policy(model).score(asked), policy(model, packed_attention="flex").score(asked)
    assert_close(flex.logprobs_NT, mask.logprobs_NT, atol=1e-5, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        low = policy(model, packed_attention="flex").score(asked)
    assert (low.logprobs_NT - mask.logprobs_NT).abs().mean() < 0.05


def test_a_kernel_that_gives_other_states_is_refused_at_its_first_use(
    policy: Make, sequences: Sequences, monkeypatch: pytest.MonkeyPatch
) -> None:
    def blind(block: Tensor) -> Any:
        return block_mask(torch.zeros_like(block))  # every rationale sees those before it

    monkeypatch.setattr(packed_check, "block_mask", blind)
    with pytest.raises(ConfigError, match=r"other hidden states.*hardware\.packing=false"):
        policy(packed_attention="flex").score(sequences([[5, 4]]))


def test_the_check_is_made_once_and_only_where_rows_are_packed(
    policy: Make, sequences: Sequences, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(packed_check, "check_packed_row", lambda *_, **__: calls.append(1))
    reader = policy(packed_attention="flex")
    reader.score(sequences([[5], [3]]))
    assert not calls
    reader.score(sequences(GROUPS))
    reader.score(sequences(GROUPS))
    assert len(calls) == 1


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("share_head", [True, False])
def test_padded_widths_change_nothing(policy: Make, sequences: Sequences, packing: bool, share_head: bool) -> None:
    asked = sequences(GROUPS, head=5)
    wide = policy(packing=packing, share_head=share_head, pad_to=128)
    assert_scores_equal(wide, policy(packing=packing, share_head=share_head), asked)
    widths = {wide.collate(asked, plan).input_ids_BL.shape[1] for plan in wide.plan(asked, 300)}
    assert widths == {128}


@pytest.mark.parametrize("pad_to", [1, 8, 128])
def test_budgets_count_padded_widths(policy: Make, sequences: Sequences, pad_to: int) -> None:
    reader, asked = policy(packing=False, pad_to=pad_to), sequences([[30], [5], [80], [9], [40]])
    for plan in reader.plan(asked, 256):
        rows, width = reader.collate(asked, plan).input_ids_BL.shape
        assert rows == 1 or rows * width <= 256
        assert width % pad_to == 0


@pytest.mark.parametrize("checkpointing", [True, False])
def test_compiled_layers_give_the_same_scores_and_gradients(
    model: Any, policy: Make, sequences: Sequences, checkpointing: bool
) -> None:
    asked, gradients = sequences([[4, 6]]), []
    names = list(model.state_dict())
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for compiled in (False, True):
        if compiled:
            compile_layers(model, backend="eager")  # traced, but without a compiler of kernels
        model.zero_grad()
        next(policy().passes(asked, 1000)).logprobs_P.sum().backward()
        gradients.append([weight.grad.clone() for weight in model.parameters()])
    for plain, found in zip(*gradients, strict=True):
        assert_close(found, plain, atol=1e-5, rtol=1e-4)
    assert list(model.state_dict()) == names


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["hardware.packed_attention=flex"], "trains on GPUs only"),
        (["hardware.compile=true"], "set rollout=vllm"),
        (
            ["hardware=gpu", "hardware.packing=true", "hardware.share_head=true", "hardware.packed_attention=flex"],
            r"set hardware\.share_head=false",
        ),
        (
            ["hardware=gpu", "hardware.packing=true", "backbone.attention=eager"],
            r"set backbone\.attention=sdpa",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(tmp_path: Any, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose_config(["+experiment=demo_tiny", *overrides], tmp_path)


def test_plain_rows_are_the_default_on_gpus(tmp_path: Any) -> None:
    hardware = compose_config(["+experiment=qwen_sup"], tmp_path).hardware
    assert (hardware.packing, hardware.pad_to, hardware.train_tokens) == (False, 128, "auto")


def test_an_exported_model_does_not_ask_for_our_attention(model: Any, tmp_path: Any) -> None:
    use_flex_for_block_masks(model)
    model.save_pretrained(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text(encoding="utf-8")
