"""The interface of sentence-transformers, and the encoder's own arguments."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers.util import cos_sim, pairwise_cos_sim
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import grace_exp
from grace_exp import GraceEncoder
from grace_exp.config.backbone import PoolingConfig
from grace_exp.config.hardware import HardwareConfig
from grace_exp.config.prompt import InstructionsConfig, PromptConfig
from grace_exp.data.batch import Role
from grace_exp.data.prompts import PromptBuilder
from grace_exp.encoder.cache import RationaleCache
from grace_exp.errors import ConfigError, DataError
from grace_exp.policy.load_backbone import Backbone
from grace_exp.policy.packing import TextSequence
from grace_exp.policy.policy import Policy
from grace_exp.rollout.protocol import Completion, Request
from grace_exp.rollout.transformers_engine import TransformersEngine

TEXTS = ["A cat sleeps.", "Rain in May", "A cat sleeps.", "Prices fell by 3 %", ""]
PROMPT = PromptConfig(
    name="p", system="Read.", instructions=InstructionsConfig(query="A question.", positive="A text."), max_tokens=128
)
SAMPLED: Any = {"temperature": 1.0, "seed": 4}


class Counting(TransformersEngine):
    """Keeps what it was asked."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model, end_token_ids=[2], pad_token_id=0, batch_tokens=10_000)
        self.calls: list[list[Request]] = []

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        self.calls.append(list(requests))
        return super().generate(requests)


@pytest.fixture
def make(shared_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Callable[..., GraceEncoder]:
    """Makes an encoder of the tiny model."""

    def make(pooling: PoolingConfig | None = None, prompt: PromptConfig = PROMPT, **settings: Any) -> GraceEncoder:
        backbone = Backbone(shared_model, tokenizer, (2,), 0)
        policy = Policy(shared_model, pooling or PoolingConfig(), HardwareConfig(name="cpu"), pad_token_id=0)
        engine = Counting(shared_model)
        return GraceEncoder(backbone, policy=policy, engine=engine, prompt=prompt, max_tokens=8, **settings)

    return make


@pytest.fixture
def encoder(make: Callable[..., GraceEncoder]) -> GraceEncoder:
    return make()


def prompts_asked(encoder: GraceEncoder) -> list[tuple[int, ...]]:
    engine = encoder.engine
    assert isinstance(engine, Counting)
    return [request.prompt_ids for call in engine.calls for request in call]


def built(encoder: GraceEncoder, role: Role, text: str, **instructions: str | None) -> tuple[int, ...]:
    prompt = replace(PROMPT, instructions=InstructionsConfig(**instructions)) if instructions else PROMPT
    return PromptBuilder(encoder.tokenizer, prompt, allow_empty=True)(role, text).token_ids


# ---- what comes back ---------------------------------------------------------------------------------------------


def test_a_list_gives_a_matrix_and_a_text_a_vector(encoder: GraceEncoder) -> None:
    many = encoder.encode(TEXTS)
    assert isinstance(many, np.ndarray)
    assert (many.shape, many.dtype) == ((5, 64), np.float32)
    one = encoder.encode(TEXTS[1])
    assert isinstance(one, np.ndarray)
    assert one.shape == (64,)
    np.testing.assert_allclose(one, many[1], atol=1e-5)
    assert np.asarray(encoder.encode([])).shape == (0, 64)
    assert np.asarray(encoder.encode(tuple(TEXTS[:1]))).shape == (1, 64)
    assert encoder.get_embedding_dimension() == 64


def test_tensors_on_the_models_device_or_a_list_of_them(encoder: GraceEncoder) -> None:
    matrix = torch.from_numpy(np.asarray(encoder.encode(TEXTS)))
    tensor = encoder.encode(TEXTS, convert_to_tensor=True)
    assert isinstance(tensor, torch.Tensor) and tensor.device == encoder.device
    torch.testing.assert_close(tensor, matrix)
    rows = encoder.encode(TEXTS, convert_to_numpy=False)
    assert isinstance(rows, list)
    torch.testing.assert_close(torch.stack(rows), matrix)
    one = encoder.encode(TEXTS[0], convert_to_tensor=True)
    assert isinstance(one, torch.Tensor) and one.shape == (64,)


def test_cut_then_brought_to_length_1(make: Callable[..., GraceEncoder]) -> None:
    encoder = make()
    whole = np.asarray(encoder.encode(TEXTS))
    np.testing.assert_array_equal(encoder.encode(TEXTS, truncate_dim=10), whole[:, :10])
    unit = whole[:, :10] / np.linalg.norm(whole[:, :10], axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.encode(TEXTS, truncate_dim=10, normalize_embeddings=True), unit, atol=1e-6)
    assert np.asarray(make(truncate_dim=7).encode(TEXTS)).shape == (5, 7)


def test_similarity_is_the_cosine_of_sentence_transformers(encoder: GraceEncoder) -> None:
    draw = np.random.default_rng(0)
    left, right = (draw.normal(size=(4, 8)).astype(np.float32) for _ in range(2))
    torch.testing.assert_close(encoder.similarity(left, right[:3]), cos_sim(left, right[:3]))
    torch.testing.assert_close(encoder.similarity(left[0], right), cos_sim(left[0], right))
    torch.testing.assert_close(encoder.similarity_pairwise(left, right), pairwise_cos_sim(left, right))


def test_equal_texts_are_done_once_and_the_order_is_kept(encoder: GraceEncoder) -> None:
    texts = [f"{'long ' * (number % 7)}{number % 11}" for number in range(30)]
    vectors = np.asarray(encoder.encode(texts, batch_size=4))
    assert len(prompts_asked(encoder)) == len(set(texts))
    for number, text in enumerate(texts):
        np.testing.assert_allclose(vectors[number], encoder.encode(text), atol=1e-5)


def test_batches_are_of_like_lengths_the_longest_first(encoder: GraceEncoder) -> None:
    encoder.encode([f"{'long ' * (number * 7 % 10)}{number}" for number in range(10)], batch_size=4)
    engine = encoder.engine
    assert isinstance(engine, Counting)
    assert [len(call) for call in engine.calls] == [4, 4, 2]
    lengths = [len(ids) for ids in prompts_asked(encoder)]
    assert lengths == sorted(lengths, reverse=True)


# ---- rationales --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", [PoolingConfig(), PoolingConfig(region="rationale", method="max", layer=1)])
def test_the_embedding_is_the_policys_of_the_same_token_ids(make: Callable[..., GraceEncoder], pooling: Any) -> None:
    encoder = make(pooling)
    vectors = np.asarray(encoder.encode(TEXTS, batch_size=2, role="document", **SAMPLED))
    builder = PromptBuilder(encoder.tokenizer, PROMPT, allow_empty=True)
    sequences = [
        TextSequence(builder(Role.POSITIVE, text), tuple(ids.tolist()), 1.0)
        for text, ids in zip(TEXTS, encoder._rationale_ids, strict=True)
    ]
    np.testing.assert_allclose(vectors, encoder.policy.score(sequences).embeddings[pooling.region], atol=1e-5)
    batch = encoder.policy.collate(sequences, range(len(sequences)))  # as in an update
    found = encoder.policy(batch, [pooling.region])[0][pooling.region]
    np.testing.assert_allclose(vectors, found.detach(), atol=1e-5)


def test_rationales_are_those_of_the_last_call_in_its_order(encoder: GraceEncoder) -> None:
    assert encoder.rationales == []
    encoder.encode(TEXTS)
    assert len(encoder.rationales) == len(encoder.rationale_tokens) == 5
    assert encoder.rationales[0] == encoder.rationales[2] != encoder.rationales[1]
    assert all(0 < tokens <= 8 for tokens in encoder.rationale_tokens)
    first = encoder.tokenizer.decode(encoder._rationale_ids[0], skip_special_tokens=True).strip()
    assert encoder.rationales[0] == first
    encoder.encode(TEXTS, mode="prompt_only")
    assert encoder.rationales == []


def test_several_rationales_are_averaged_as_unit_vectors(make: Callable[..., GraceEncoder]) -> None:
    encoder = make()
    mean = np.asarray(encoder.encode(TEXTS, samples=3, **SAMPLED))
    assert len(encoder.rationales) == 15
    builder = PromptBuilder(encoder.tokenizer, PROMPT, allow_empty=True)
    ids = encoder._rationale_ids
    sequences = [
        TextSequence(builder(Role.QUERY, text), tuple(ids[3 * number + sample].tolist()), 1.0)
        for number, text in enumerate(TEXTS)
        for sample in range(3)
    ]
    each = encoder.policy.score(sequences).embeddings["text_and_rationale"]
    expected = torch.nn.functional.normalize(each, dim=1).view(5, 3, 64).mean(dim=1)
    np.testing.assert_allclose(mean, expected, atol=1e-5)
    assert [i.tolist() for i in ids[:3]] != [ids[0].tolist()] * 3
    encoder.encode(TEXTS, **SAMPLED)
    assert [i.tolist() for i in encoder._rationale_ids] == [i.tolist() for i in ids[::3]]


def test_sampling_is_seeded_and_independent_of_neighbours(encoder: GraceEncoder) -> None:
    encoder.encode(TEXTS, **SAMPLED)
    together = encoder.rationales
    encoder.encode(TEXTS[3], **SAMPLED)
    assert encoder.rationales == together[3:4]
    encoder.encode(TEXTS, temperature=1.0, seed=5)
    assert encoder.rationales != together


def test_the_budget_of_a_call_replaces_the_models(encoder: GraceEncoder) -> None:
    encoder.encode(TEXTS, max_tokens=3)
    assert max(encoder.rationale_tokens) <= 3
    np.testing.assert_array_equal(encoder.encode(TEXTS, max_tokens=0), encoder.encode(TEXTS, mode="prompt_only"))


@pytest.mark.parametrize(
    ("mode", "writers"),
    [("rationale", {"query", "document"}), ("prompt_only", set()), ("query_only", {"query"}),
     ("document_only", {"document"})],
)  # fmt: skip
def test_modes_say_who_writes(encoder: GraceEncoder, mode: Any, writers: set[str]) -> None:
    for role, encode in (("query", encoder.encode_query), ("document", encoder.encode_document)):
        vector = np.asarray(encode("A cat sleeps.", mode=mode))
        assert len(encoder.rationales) == (role in writers)
        if role not in writers:
            builder = PromptBuilder(encoder.tokenizer, PROMPT)
            alone = TextSequence(builder(Role.QUERY if role == "query" else Role.POSITIVE, "A cat sleeps."))
            expected = encoder.policy.score([alone], ["text"]).embeddings["text"][0]
            np.testing.assert_allclose(vector, expected, atol=1e-5)


def test_a_model_trained_without_rationales_writes_none_unless_asked(make: Callable[..., GraceEncoder]) -> None:
    encoder = make(mode="prompt_only")
    encoder.encode(TEXTS)
    assert encoder.rationales == []
    encoder.encode(TEXTS, mode="rationale")
    assert len(encoder.rationales) == 5


# ---- prompts -----------------------------------------------------------------------------------------------------


def test_role_and_name_choose_the_instruction(encoder: GraceEncoder) -> None:
    encoder.encode("x")
    encoder.encode("x", prompt_name="query")
    encoder.encode_query("x")
    query = built(encoder, Role.QUERY, "x")
    assert prompts_asked(encoder) == [query] * 3
    encoder.encode("x", prompt_name="document")
    encoder.encode("x", "passage")
    encoder.encode_document("x")
    document = built(encoder, Role.POSITIVE, "x")
    assert prompts_asked(encoder)[3:] == [document] * 3
    assert query != document


def test_instructions_can_be_added_by_name_or_given_for_a_call(encoder: GraceEncoder) -> None:
    assert encoder.prompts == {"query": "A question.", "document": "A text."}
    encoder.prompts["STS"] = "Two alike?"
    encoder.encode("x", prompt_name="STS")
    encoder.encode("x", prompt="Two alike?")
    encoder.encode("x", prompt="")
    with_it, without = (built(encoder, Role.QUERY, "x", query=text) for text in ("Two alike?", None))
    assert prompts_asked(encoder) == [with_it, with_it, without]


def test_a_changed_instruction_of_a_role_counts(encoder: GraceEncoder) -> None:
    encoder.prompts["query"] = "Now another."
    encoder.encode_query("x")
    assert prompts_asked(encoder) == [built(encoder, Role.QUERY, "x", query="Now another.")]


# ---- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "fast"}, r"mode='fast' is not one of rationale, prompt_only, query_only, document_only"),
        ({"role": "reader"}, r"role='reader' is not one of query, document"),
        ({"prompt_name": "STS"}, r"prompt_name='STS' is not one of 'query', 'document'; add it"),
        ({"batch_size": 0}, r"batch_size=0: 1 or more"),
        ({"temperature": -1.0}, r"temperature=-1.0: 0 or more"),
        ({"samples": 2}, r"samples=2 with temperature=0 would write the same rationale 2 times"),
        ({"max_tokens": -1}, r"max_tokens=-1: 0 or more"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_done_is_refused(encoder: GraceEncoder, settings: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        encoder.encode(["x"], **settings)


def test_what_is_no_text_is_named(encoder: GraceEncoder) -> None:
    with pytest.raises(DataError, match=r"texts\[1\] is null; expected a text"):
        encoder.encode(["x", None])  # type: ignore[list-item]


def test_the_bar_goes_to_stderr(encoder: GraceEncoder, capsys: pytest.CaptureFixture[str]) -> None:
    encoder.encode(TEXTS)
    assert capsys.readouterr() == ("", "")
    encoder.encode(TEXTS, show_progress_bar=True)
    out, err = capsys.readouterr()
    assert out == "" and "4/4" in err


def test_the_package_gives_the_encoder_without_loading_it_early() -> None:
    code = "import sys, grace_exp; assert grace_exp.__all__ == ['GraceEncoder'] and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert GraceEncoder.__module__ == "grace_exp.encoder.encoder"
    with pytest.raises(AttributeError, match="'grace_exp' has no attribute 'Encoder'"):
        _ = grace_exp.Encoder


def test_the_cache_makes_a_second_call_write_and_compute_nothing(
    make: Callable[..., GraceEncoder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make(cache=RationaleCache(tmp_path))
    vectors, rationales = first.encode(TEXTS, **SAMPLED), first.rationales
    again = make(cache=RationaleCache(tmp_path))
    monkeypatch.setattr(Policy, "embed", None)  # any forward would fail
    np.testing.assert_array_equal(again.encode(TEXTS[::-1], **SAMPLED), np.asarray(vectors)[::-1])
    assert again.rationales == rationales[::-1]
    assert prompts_asked(again) == []
