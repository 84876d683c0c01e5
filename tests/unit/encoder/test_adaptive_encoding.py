"""mode=adaptive: every text is embedded as the rule says, from the cache too."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from grace_exp import GraceEncoder
from grace_exp.config.compose import compose_config
from grace_exp.config.job import EncodeConfig
from grace_exp.data.batch import Role
from grace_exp.encoder.adaptive_rule import AdaptiveRule
from grace_exp.encoder.cache import RationaleCache
from grace_exp.encoder.center import Center
from grace_exp.encoder.serving.answers import Answers, Kind
from grace_exp.errors import ConfigError
from grace_exp.evaluation.control_table import ControlRow, adaptive_lines
from grace_exp.evaluation.mteb.adapter import MtebEncoder
from grace_exp.evaluation.scores import ItemScores
from grace_exp.jobs.fit_adaptive import _before_centering

TEXTS = ["A cat sleeps.", "Rain in May", "", "Prices fell by 3 %", "Rain in May"]


def chooser(encoder: GraceEncoder) -> tuple[AdaptiveRule, np.ndarray]:
    """A rule that chooses some of the texts by the first number of their direction, and which."""
    plain = np.asarray(encoder.encode(TEXTS, mode="prompt_only"))
    first = plain[:, 0] / np.linalg.norm(plain, axis=1)
    rule = AdaptiveRule(
        weights=(100.0, *[0.0] * (plain.shape[1] - 1)),
        log_norm=0.0,
        document=0.0,
        bias=-100 * float(np.median(first)) + 1e-3,
        threshold=0.5,
    )
    chosen = rule.writes(plain, Role.QUERY)
    assert 0 < chosen.sum() < len(TEXTS)
    return rule, chosen


def test_each_text_gets_the_embedding_of_the_mode_that_the_rule_chooses(
    make_encoder: Callable[..., GraceEncoder], tmp_path: Path
) -> None:
    encoder = make_encoder(cache=RationaleCache(tmp_path))
    with pytest.raises(ConfigError, match=r"mode=adaptive: grace has no adaptive_rule\.json"):
        encoder.encode(TEXTS, mode="adaptive")
    rule, chosen = chooser(encoder)
    told: list[int] = []
    encoder.rule = rule
    found = np.asarray(encoder.encode(TEXTS, mode="adaptive", show_progress_bar=told.append))
    assert sum(told) == len(set(TEXTS))
    lengths = np.array(encoder.rationale_tokens)
    written = list(encoder.rationales)
    assert ((lengths > 0) == chosen).all()
    plain = np.asarray(encoder.encode(TEXTS, mode="prompt_only"))
    whole = np.asarray(encoder.encode(TEXTS, mode="rationale"))
    np.testing.assert_allclose(found, np.where(chosen[:, None], whole, plain), atol=1e-5)
    assert written == [text if one else "" for text, one in zip(encoder.rationales, chosen, strict=True)]
    sampled = np.asarray(encoder.encode(TEXTS, mode="adaptive", temperature=1.0, samples=2))
    assert np.array(encoder.rationale_tokens).reshape(-1, 2)[~chosen].sum() == 0
    np.testing.assert_allclose(sampled[~chosen], plain[~chosen], atol=1e-5)
    assert np.asarray(encoder.encode(TEXTS, mode="adaptive", max_tokens=0)).shape == plain.shape

    answers = Answers(encoder, EncodeConfig(mode="adaptive"))
    kind = Kind(Role.QUERY, encoder.max_tokens)
    known = answers.known(TEXTS, kind)
    assert known is not None
    np.testing.assert_allclose(known.vectors, found, atol=1e-5)
    assert known.rationales == [[text] if one else [] for text, one in zip(written, chosen, strict=True)]
    assert answers.compute(TEXTS, kind).rationales == known.rationales
    assert answers.known(["New"], kind) is None
    encoder.rule = replace(rule, threshold=0.999999)
    if (none := answers.known(TEXTS[:1], kind)) is not None:
        assert none.rationales == [[]]


def test_a_saved_model_keeps_its_rule_and_no_other_prompt_gets_it(
    make_encoder: Callable[..., GraceEncoder], tmp_path: Path
) -> None:
    encoder = make_encoder()
    encoder.rule, _ = chooser(encoder)
    encoder.save_pretrained(tmp_path / "model")
    loaded = GraceEncoder.from_pretrained(tmp_path / "model", cache=False, device="cpu")
    assert loaded.rule == encoder.rule and loaded.mode == "rationale"
    np.testing.assert_allclose(
        loaded.encode(TEXTS, mode="adaptive"), np.asarray(encoder.encode(TEXTS, mode="adaptive")), atol=1e-5
    )
    as_sentence_transformer = loaded.as_sentence_transformer()
    np.testing.assert_allclose(
        as_sentence_transformer.encode(TEXTS, mode="adaptive"),  # type: ignore[call-overload]
        np.asarray(encoder.encode(TEXTS, mode="adaptive")),
        atol=1e-5,
    )
    other = GraceEncoder.from_pretrained(tmp_path / "model", cache=False, device="cpu", prompt="Say it.")
    assert other.rule is None


def test_benchmarks_know_models_with_other_rules_apart(make_encoder: Callable[..., GraceEncoder]) -> None:
    encoder = make_encoder()
    rule, _ = chooser(encoder)

    def revision(mode: str, rule: AdaptiveRule | None) -> str:
        encoder.rule = rule
        return str(MtebEncoder.of_grace(encoder, mode=mode).mteb_model_meta.revision)

    assert revision("adaptive", rule) != revision("adaptive", replace(rule, bias=1.0))
    assert revision("rationale", rule) == revision("rationale", None)


def test_what_is_saved_and_lost_is_said() -> None:
    def row(name: str, value: float, tokens: float, ms: float) -> ControlRow:
        items = ItemScores(np.full(4, value), None)
        return ControlRow("a", name, items, items, tokens, ms)

    rows = [row("prompt_only", 0.5, 0, 10), row("rationale", 0.8, 16, 100), row("adaptive", 0.7, 4, 50)]
    assert adaptive_lines(rows, 10) == [
        "a: adaptive takes 25 % of the tokens and 50 % of the time of rationale; score against rationale "
        "-10.0 [-10.0, -10.0], against prompt_only 20.0 [20.0, 20.0]"
    ]
    assert adaptive_lines(rows[:2], 10) == []


def test_the_rule_is_fitted_on_what_it_reads_before_a_mean_is_removed(
    make_encoder: Callable[..., GraceEncoder], tmp_path: Path
) -> None:
    encoder = make_encoder()
    config = compose_config(["+experiment=demo_tiny"], tmp_path)
    assert _before_centering(config, encoder, TEXTS, TEXTS) is None
    plain = [np.asarray(encoder.encode(TEXTS, mode="prompt_only", role=role)) for role in ("query", "document")]
    mean = np.ones(plain[0].shape[1], dtype=np.float32)
    encoder.center = Center(rationale=mean, prompt_only=mean)
    read = _before_centering(config, encoder, TEXTS, TEXTS)
    assert read is not None and encoder.center is not None
    np.testing.assert_allclose(read, plain, atol=1e-6)
    encoder.rule, chosen = chooser(make_encoder())
    found = np.asarray(encoder.encode(TEXTS, mode="adaptive"))
    assert ((np.array(encoder.rationale_tokens) > 0) == chosen).all()
    np.testing.assert_allclose(found[~chosen], plain[0][~chosen] - 1, atol=1e-5)
