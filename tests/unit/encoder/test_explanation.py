"""The parts of a cosine add up to it and name the text and rationale that they belong to."""

from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from grace_exp import GraceEncoder
from grace_exp.config.backbone import PoolingConfig
from grace_exp.errors import ConfigError
from grace_exp.review.explanation_page import print_explanation, write_page

A, B = "Rain in May \N{CAT FACE} falls.", "Prices fell by 3 %"


@pytest.fixture
def encoder(make_encoder: Callable[..., GraceEncoder]) -> GraceEncoder:
    return make_encoder()


def cosine(encoder: GraceEncoder, a: str, b: str) -> float:
    return float(encoder.similarity(encoder.encode_query(a), encoder.encode_document(b)))


@pytest.mark.parametrize("region", ["text_and_rationale", "rationale", "text"])
@pytest.mark.parametrize("truncate_dim", [None, 16])
def test_contributions_add_up_to_the_cosine_of_the_embeddings(
    make_encoder: Callable[..., GraceEncoder], region: str, truncate_dim: int | None
) -> None:
    encoder = make_encoder(PoolingConfig(region=region), truncate_dim=truncate_dim)  # type: ignore[arg-type]
    explanation = encoder.explain(A, B)
    assert explanation.cosine == pytest.approx(cosine(encoder, A, B), abs=1e-5)
    assert explanation.total == pytest.approx(explanation.cosine, abs=1e-5)
    for part in (explanation.a, explanation.b):
        assert sum(word.contribution for word in part.words) == pytest.approx(explanation.cosine, abs=1e-5)


def test_swapped_texts_have_the_same_sum_and_the_same_words(encoder: GraceEncoder) -> None:
    there = encoder.explain(A, B, role_a="document")
    back = encoder.explain(B, A, role_a="document")
    assert back.total == pytest.approx(there.total, abs=1e-6)
    assert [word.text for word in back.b.words] == [word.text for word in there.a.words]
    assert back.b.words[3].contribution == pytest.approx(there.a.words[3].contribution, abs=1e-6)


def test_words_are_whole_and_know_where_they_stand(encoder: GraceEncoder) -> None:
    part = encoder.explain(A, B).a
    assert "".join(word.text for word in part.words if word.kind == "text") == A
    assert encoder.rationales  # of the last text that was encoded
    spoken = "".join(word.text for word in part.words if word.kind == "rationale")
    assert spoken.strip() == part.rationale
    assert {word.text for word in part.words if word.kind == "special"} >= {"<|im_start|>"}
    assert any("user" in word.text for word in part.words if word.kind == "template")
    assert part.not_pooled > 0
    assert sum(map(part.share, ("text", "rationale", "template", "special"))) == pytest.approx(
        sum(word.contribution for word in part.words)
    )


def test_without_rationales_the_texts_alone_are_explained(encoder: GraceEncoder) -> None:
    explanation = encoder.explain(A, B, mode="prompt_only")
    assert explanation.controls == {} and explanation.a.rationale == ""
    prompt_only = encoder.encode_query(A, mode="prompt_only"), encoder.encode_document(B, mode="prompt_only")
    assert explanation.cosine == pytest.approx(float(encoder.similarity(*prompt_only)), abs=1e-5)


def test_controls_are_cosines_with_other_rationales(encoder: GraceEncoder) -> None:
    controls = encoder.explain(A, B).controls
    prompt_only = encoder.encode_query(A, mode="prompt_only"), encoder.encode_document(B, mode="prompt_only")
    assert controls["prompt_only"] == pytest.approx(float(encoder.similarity(*prompt_only)), abs=1e-5)
    assert set(controls) == {"prompt_only", "empty", "repeated", "swapped"}
    assert len({round(value, 6) for value in controls.values()}) == 4


@pytest.mark.parametrize("method", ["max", "last"])
def test_other_poolings_are_refused(make_encoder: Callable[..., GraceEncoder], method: str) -> None:
    with pytest.raises(
        ConfigError, match=f"pooling.method={method}: a cosine can be explained for pooling 'mean' only"
    ):
        make_encoder(PoolingConfig(method=method)).explain(A, B)  # type: ignore[arg-type]


def test_texts_of_the_user_are_escaped_on_the_page_and_on_the_terminal(encoder: GraceEncoder, tmp_path: Path) -> None:
    explanation = encoder.explain("<script>alert(1)</script> [bold]x[/bold]", B)
    write_page(tmp_path / "page.html", [explanation], "<model>")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;model&gt;" in page and "default-src 'none'" in page
    console = Console(record=True, width=200)
    print_explanation(console, explanation)
    printed = console.export_text()
    assert "[bold]x[/bold]" in printed and f"cosine {explanation.cosine:.4f}" in printed
