from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, get_args

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from grace_exp.config.backbone import PoolingConfig
from grace_exp.data.prompts import Prompt
from grace_exp.errors import ConfigError
from grace_exp.policy.forward_pass import collect
from grace_exp.policy.packing import Region, TextSequence
from grace_exp.policy.policy import Policy

GROUPS = [[5, 1, 9, 5], [7], [2, 2], [16, 3, 1], [4]]
REGIONS: tuple[Region, ...] = get_args(Region)
Make = Callable[..., Policy]
Sequences = Callable[..., list[TextSequence]]


def assert_scored_as_plain(
    policy: Policy, sequences: list[TextSequence], plain: Any, regions: tuple[Region, ...] = REGIONS
) -> None:
    scored = policy.score(sequences, regions)
    with torch.no_grad():
        for number, sequence in enumerate(sequences):
            length = len(sequence.completion_ids)
            for region in regions:
                expected = plain(policy.model, sequence, policy.pooling, region)
                torch.testing.assert_close(scored.embeddings[region][number], expected.embedding, atol=1e-5, rtol=0)
            torch.testing.assert_close(scored.logprobs_NT[number, :length], expected.logprobs, atol=1e-5, rtol=0)
            assert scored.mask_NT[number].tolist() == [place < length for place in range(scored.mask_NT.shape[1])]
            assert not scored.logprobs_NT[number, length:].any()


@pytest.mark.parametrize("layer", [-1, -2, 0])
@pytest.mark.parametrize("method", ["mean", "last", "max"])
@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_one_forward_gives_what_plain_forwards_give(
    model: Any,
    policy: Make,
    sequences: Sequences,
    plain: Any,
    attention: str,
    packing: bool,
    method: Literal["mean", "last", "max"],
    layer: int,
) -> None:
    model.set_attn_implementation(attention)
    pooling = PoolingConfig(method=method, layer=layer)
    assert_scored_as_plain(policy(pooling=pooling, packing=packing), sequences(GROUPS, temperature=0.7), plain)


@pytest.mark.parametrize("layer", [-1, -2, 0])
@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("groups", [GROUPS, [[4], [7], [1]], [[3, 5]]], ids=["mixed", "single", "one prompt"])
def test_what_prompts_begin_with_can_be_computed_once(
    model: Any,
    policy: Make,
    sequences: Sequences,
    plain: Any,
    groups: list[list[int]],
    attention: str,
    packing: bool,
    layer: int,
) -> None:
    model.set_attn_implementation(attention)
    sharing = policy(pooling=PoolingConfig(layer=layer), packing=packing, share_head=True)
    assert_scored_as_plain(sharing, sequences(groups, temperature=0.7, head=9), plain)
    assert_scored_as_plain(sharing, sequences(groups), plain)  # nothing in common


def test_a_head_is_computed_for_one_row_only(model: Any, policy: Make, sequences: Sequences) -> None:
    read: list[tuple[int, ...]] = []
    model.get_decoder().layers[0].register_forward_hook(lambda _m, args, _o: read.append(tuple(args[0].shape[:2])))
    asked = sequences([[4], [7], [1]], head=9)
    policy(share_head=True).embed(asked)
    longest = max(len(sequence.prompt.token_ids) + len(sequence.completion_ids) for sequence in asked)
    assert read == [(1, 9), (3, longest - 9)]


def test_prompts_that_are_each_others_beginning_keep_their_last_token(
    policy: Make, sequences: Sequences, plain: Any
) -> None:
    (sequence,) = sequences([[5]], head=9)
    shorter = replace(sequence, prompt=Prompt(sequence.prompt.token_ids[:-1], 2))
    assert_scored_as_plain(policy(share_head=True, packing=False), [sequence, sequence, shorter], plain)


def test_gradients_reach_the_weights_through_a_shared_head(model: Any, policy: Make, sequences: Sequences) -> None:
    asked = sequences(GROUPS, head=9)
    gradients = []
    for share in (False, True):
        model.zero_grad()
        reader = policy(share_head=share)
        for forward in reader.passes(asked, 10_000):
            forward.logprobs_P.sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for whole, shared in zip(*gradients, strict=True):
        torch.testing.assert_close(shared, whole, atol=1e-4, rtol=1e-4)


def test_gradient_checkpointing_computes_rows_whole(model: Any, policy: Make, sequences: Sequences) -> None:
    model.gradient_checkpointing_enable()
    reader, asked = policy(share_head=True), sequences(GROUPS, head=9)
    model.train()
    assert reader.collate(asked, range(len(asked))).head == 0
    model.eval()
    assert reader.collate(asked, range(len(asked))).head == 9


def test_embeddings_alone_are_those_of_scoring_and_skip_the_head(
    model: Any, policy: Make, sequences: Sequences
) -> None:
    asked = sequences(GROUPS)
    expected = policy().score(asked, REGIONS).embeddings
    model.get_output_embeddings().register_forward_hook(lambda *_: pytest.fail("no logits are needed"))
    found = policy(score_tokens=60).embed(asked, REGIONS)
    for region in REGIONS:
        torch.testing.assert_close(found[region], expected[region], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "settings",
    [
        {"logprob_chunk_tokens": 1},
        {"logprob_chunk_tokens": 7},
        {"score_tokens": 1},
        {"score_tokens": 50},
        {"max_row_tokens": 1},
        {"max_row_tokens": 25},
        {"max_row_tokens": 25, "score_tokens": 60, "logprob_chunk_tokens": 3},
    ],
    ids=str,
)
def test_chunks_budgets_and_row_limits_change_nothing(
    policy: Make, sequences: Sequences, plain: Any, settings: dict[str, int]
) -> None:
    assert_scored_as_plain(policy(**settings), sequences(GROUPS), plain)


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
def test_temperatures_may_differ_within_a_group(policy: Make, sequences: Sequences, plain: Any, packing: bool) -> None:
    mixed = [
        replace(sequence, temperature=temperature)
        for sequence, temperature in zip(sequences([[4, 6, 3], [5, 2]]), (1.0, 0.5, 0.0, 2.0, 0.25), strict=True)
    ]
    assert_scored_as_plain(policy(packing=packing), mixed, plain)


def test_groups_with_equal_prompts_stay_what_they_are(policy: Make, sequences: Sequences, plain: Any) -> None:
    first, second = sequences([[5, 3]]), sequences([[5, 3]], seed=1)
    same = [TextSequence(first[0].prompt, sequence.completion_ids) for sequence in second]
    assert_scored_as_plain(policy(), [first[0], same[0], first[1], same[1]], plain)
    assert_scored_as_plain(policy(), [first[0], first[0]], plain)  # the same rationale twice, too


def test_equal_prompts_that_are_pooled_differently_do_not_share_a_row(
    policy: Make, sequences: Sequences, plain: Any
) -> None:
    (sequence,) = sequences([[5]])
    later = replace(sequence, prompt=Prompt(sequence.prompt.token_ids, sequence.prompt.pool_start + 1))
    assert_scored_as_plain(policy(), [sequence, later], plain)


def test_a_prompt_alone_can_be_scored(policy: Make, sequences: Sequences, plain: Any) -> None:
    bare = [replace(sequence, completion_ids=()) for sequence in sequences([[1], [1]])]
    scored = policy().score(bare, ("text", "text_and_rationale"))
    assert scored.logprobs_NT.shape == (2, 0)
    assert torch.equal(scored.embeddings["text"], scored.embeddings["text_and_rationale"])
    mixed = [*bare, *sequences([[4, 2]], seed=5)]
    with torch.no_grad():
        for number, embedding in enumerate(policy().score(mixed, ("text",)).embeddings["text"]):
            sequence = mixed[number] if mixed[number].completion_ids else replace(mixed[number], completion_ids=(1,))
            expected = plain(policy().model, sequence, PoolingConfig(region="text")).embedding
            torch.testing.assert_close(embedding, expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="'rationale' is empty"):
        policy().score(bare, ("rationale",))


def test_the_text_region_does_not_see_the_rationale(policy: Make, sequences: Sequences) -> None:
    embeddings = policy().score(sequences([[5, 9, 1]]), ("text",)).embeddings["text"]
    torch.testing.assert_close(embeddings[0], embeddings[1], atol=1e-6, rtol=0)
    torch.testing.assert_close(embeddings[0], embeddings[2], atol=1e-6, rtol=0)


def test_the_configured_region_is_the_default(policy: Make, sequences: Sequences) -> None:
    scored = policy(pooling=PoolingConfig(region="rationale")).score(sequences(GROUPS))
    assert set(scored.embeddings) == {"rationale"}


def test_an_untied_head_and_another_architecture_are_read_the_same_way(
    policy: Make, sequences: Sequences, plain: Any
) -> None:
    torch.manual_seed(0)
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=1024,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=False,
            initializer_range=0.1,
        )
    ).eval()
    for layer in (-1, -2):
        assert_scored_as_plain(policy(llama, pooling=PoolingConfig(layer=layer)), sequences(GROUPS), plain)


def test_a_bf16_model_is_pooled_and_scored_in_float32(
    model: PreTrainedModel, policy: Make, sequences: Sequences, plain: Any
) -> None:
    model.to(torch.bfloat16)  # type: ignore[call-arg]
    (sequence,) = sequences([[400]])
    (embedding,) = (scored := policy().score([sequence])).embeddings["text_and_rationale"]
    assert embedding.dtype == scored.logprobs_NT.dtype == torch.float32
    with torch.no_grad():
        output: Any = model(
            torch.tensor([[*sequence.prompt.token_ids, *sequence.completion_ids]]), output_hidden_states=True
        )
    # A mean of 400 numbers summed in bf16 would be off by a percent: here it is that of the bf16 states in float32.
    expected = output.hidden_states[-1][0].float()[sequence.prompt.pool_start :].mean(0)
    torch.testing.assert_close(embedding, expected, atol=1e-6, rtol=1e-5)
    expected_logprobs = plain(model, sequence, PoolingConfig()).logprobs
    torch.testing.assert_close(scored.logprobs_NT[0], expected_logprobs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_bf16_model_can_be_packed(model: Any, policy: Make, sequences: Sequences, attention: str) -> None:
    model.set_attn_implementation(attention)
    model.to(torch.bfloat16)
    packed, padded = (policy(packing=packing).score(sequences(GROUPS)) for packing in (True, False))
    region: Region = "text_and_rationale"
    assert nn.functional.cosine_similarity(packed.embeddings[region], padded.embeddings[region]).min() > 0.999
    assert (packed.logprobs_NT - padded.logprobs_NT).abs().mean() < 0.05  # bf16 keeps eight bits


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
def test_logits_exist_for_a_chunk_of_rationale_tokens_at_a_time(
    model: Any, policy: Make, sequences: Sequences, packing: bool, grad: bool
) -> None:
    rows: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda _m, _a, logits: rows.append(len(logits)))
    asked = sequences(GROUPS)
    reader = policy(packing=packing, logprob_chunk_tokens=8)
    with torch.set_grad_enabled(grad):
        _, logprobs, _ = reader(reader.collate(asked, range(len(asked))))
    total = sum(len(sequence.completion_ids) for sequence in asked)
    assert max(rows) <= 8
    assert sum(rows) == total  # none for prompts or padding
    if grad:
        rows.clear()
        logprobs.sum().backward()
        assert max(rows) <= 8  # computed again, chunk by chunk


def test_rows_without_a_block_mask_keep_the_fast_causal_kernel(model: Any, policy: Make, sequences: Sequences) -> None:
    masks: list[Tensor | None] = []
    model.get_decoder().layers[0].register_forward_pre_hook(
        lambda _m, _a, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True
    )
    policy(packing=False).score(sequences(GROUPS))
    assert masks == [None]  # padded to different lengths, yet no mask is needed


def test_embeddings_carry_no_gradient_and_logprobs_do(policy: Make, sequences: Sequences) -> None:
    reader, asked = policy(), sequences([[3, 4]])
    embeddings, logprobs, _ = reader(reader.collate(asked, [0, 1]), ("text_and_rationale",))
    assert not embeddings["text_and_rationale"].requires_grad
    assert logprobs.requires_grad


@pytest.mark.parametrize("token_budget", [100_000, 60])
def test_passes_with_gradients_say_what_scoring_says(policy: Make, sequences: Sequences, token_budget: int) -> None:
    reader, asked = policy(), sequences(GROUPS)
    passes = list(reader.passes(asked, token_budget, REGIONS))
    collected, scored = collect(asked, passes), reader.score(asked, REGIONS)
    for region in REGIONS:
        torch.testing.assert_close(collected.embeddings[region], scored.embeddings[region], atol=1e-5, rtol=0)
    torch.testing.assert_close(collected.logprobs_NT, scored.logprobs_NT, atol=1e-5, rtol=0)
    assert torch.equal(collected.mask_NT, scored.mask_NT)
    assert not collected.logprobs_NT.requires_grad
    assert all(forward.logprobs_P.requires_grad for forward in passes)  # kept for an update


@pytest.mark.parametrize("training", [True, False])
def test_scoring_is_in_evaluation_mode_and_leaves_the_mode_as_it_was(
    model: Any, policy: Make, sequences: Sequences, training: bool
) -> None:
    expected = policy().score(sequences(GROUPS))
    for layer in model.get_decoder().layers:
        layer.self_attn.attention_dropout = 0.5
    model.train(training)
    scored = policy().score(sequences(GROUPS))
    assert model.training is training
    assert torch.equal(scored.logprobs_NT, expected.logprobs_NT)
    assert not scored.logprobs_NT.requires_grad


def test_hidden_states_are_recorded_only_while_asked_for(model: Any, policy: Make, sequences: Sequences) -> None:
    def hooks() -> list[int]:
        return [len(module._forward_hooks) for module in model.modules()]

    before = hooks()
    policy(pooling=PoolingConfig(layer=-2)).score(sequences(GROUPS))
    assert hooks() == before


@pytest.mark.parametrize(("layer", "allowed"), [(2, True), (-3, True), (3, False), (-4, False)])
def test_a_layer_that_the_model_does_not_have_is_refused(policy: Make, layer: int, allowed: bool) -> None:
    if allowed:
        policy(pooling=PoolingConfig(layer=layer))
    else:
        with pytest.raises(ConfigError, match=rf"pooling\.layer = {layer}: the model has 2 layers, so -3 to 2"):
            policy(pooling=PoolingConfig(layer=layer))


@pytest.mark.parametrize("setting", ["final_logit_softcapping", "logits_scaling", "logit_scale"])
def test_models_that_alter_logits_behind_the_head_are_refused(model: Any, policy: Make, setting: str) -> None:
    setattr(model.config, setting, 30.0)
    with pytest.raises(ConfigError, match=setting):
        policy()


def test_trainable_parameters_are_those_an_update_moves(model: PreTrainedModel, policy: Make) -> None:
    frozen: nn.Parameter = model.get_input_embeddings().weight  # type: ignore[assignment]
    frozen.requires_grad_(False)
    found = policy().trainable_parameters()
    assert all(parameter is not frozen for parameter in found)
    assert len({id(parameter) for parameter in found}) == len(found) == len(list(model.parameters())) - 1
