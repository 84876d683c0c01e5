"""Given rationales have the same embeddings as equal rationales that the model wrote."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grace_exp import GraceEncoder
from grace_exp.config.backbone import PoolingConfig
from grace_exp.errors import ConfigError, DataError

TEXTS = ["Rain in May.", "Prices fell by 3 %", "Rain in May."]


@pytest.mark.parametrize("region", ["text_and_rationale", "rationale"])
def test_own_rationales_given_back_give_the_same_embeddings(
    make_encoder: Callable[..., GraceEncoder], region: str
) -> None:
    encoder = make_encoder(PoolingConfig(region=region))  # type: ignore[arg-type]
    expected = encoder.encode_document(TEXTS)
    written = encoder.rationale_ids
    np.testing.assert_allclose(encoder.encode_document(TEXTS, rationales=written), expected, atol=1e-6)
    assert encoder.rationale_ids == written


def test_equal_texts_may_have_different_rationales(make_encoder: Callable[..., GraceEncoder]) -> None:
    found = np.asarray(make_encoder().encode(["a cat", "a cat"], rationales=[[5, 2], [6, 7, 2]]))
    assert np.abs(found[0] - found[1]).max() > 1e-4


def test_a_text_gets_the_end_token_and_never_spells_one(make_encoder: Callable[..., GraceEncoder]) -> None:
    encoder = make_encoder()
    encoder.encode(["a", "b"], rationales=["", "so <|im_end|> it is"])
    empty, spelled = encoder.rationale_ids
    assert empty == [2] and spelled[-1] == 2 and 2 not in spelled[:-1]
    encoder.encode("a", rationales=[spelled])
    assert encoder.rationales == ["so <|im_end|> it is"]


def test_the_cache_knows_them_by_their_ids(make_encoder: Callable[..., GraceEncoder], tmp_path: Path) -> None:
    from grace_exp.encoder.cache import RationaleCache

    encoder = make_encoder(cache=RationaleCache(tmp_path))
    own = encoder.encode("a cat")
    for ids in ([5, 2], [6, 2]):
        expected = make_encoder().encode("a cat", rationales=[ids])
        for _ in range(2):  # computed, then out of the cache
            np.testing.assert_allclose(encoder.encode("a cat", rationales=[ids]), expected, atol=1e-6)
    np.testing.assert_array_equal(encoder.encode("a cat"), own)
    encoder.policy.embed = None  # type: ignore[assignment,method-assign]
    assert np.isfinite(encoder.encode("a cat", rationales=[[5, 2]])).all()
    encoder.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "prompt_only"}, "mode=prompt_only with rationales"),
        ({"max_tokens": 4}, "max_tokens=4 with rationales"),
        ({"temperature": 0.5}, r"temperature=0\.5 with rationales"),
        ({"samples": 2}, "samples=2 with rationales"),
    ],
)
def test_settings_of_writing_are_refused(
    make_encoder: Callable[..., GraceEncoder], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_encoder().encode(["a"], rationales=[[2]], **settings)


@pytest.mark.parametrize(
    ("rationales", "message"),
    [
        ("b", "rationales is a text for 1 texts"),
        ([[2], [2]], "a list with one rationale per text"),
        ([[]], r"rationales\[0\] must hold one token id or more.*\[2\]"),
        ([[10**6]], "each from 0 to"),
        ([[-1]], "each from 0 to"),
        (["\ud800"], r"rationales\[0\]: "),
    ],
)
def test_what_is_no_rationale_is_refused(
    make_encoder: Callable[..., GraceEncoder], rationales: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        make_encoder().encode(["a"], rationales=rationales)
