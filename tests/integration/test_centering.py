"""Centred exports: one command fits the mean; encoder, sentence-transformers, server and benchmarks remove it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from grace_exp import GraceEncoder
from grace_exp.config.compose import compose_config
from grace_exp.config.job import EncodeConfig
from grace_exp.data.batch import Role
from grace_exp.encoder.cache import RationaleCache
from grace_exp.encoder.center import CENTER_FILE
from grace_exp.encoder.serving.answers import Answers, Kind
from grace_exp.errors import ConfigError
from grace_exp.evaluation.mteb.adapter import MtebEncoder
from grace_exp.jobs import run as run_job

TEXTS = ["A cat sleeps.", "Rain in May", "Prices fell by three percent", "ü 東京"]
COMMON = ["+experiment=demo_tiny", "hardware=cpu", "hardware.threads=1", "callbacks.progress=none"]
FIT = [*COMMON, "job=fit_center", "job.encode.cache_gib=0"]


def encoder_of(folder: Path, cache: Any = False) -> GraceEncoder:
    return GraceEncoder.from_pretrained(folder, cache=cache, device="cpu")


def fitted(folder: Path, *overrides: str) -> dict[str, float]:
    out = folder.with_name("fit")
    return run_job(compose_config([*FIT, f"job.model={folder}", f"cache_dir={out / 'cache'}", *overrides], out))


def revision(encoder: GraceEncoder) -> str | None:
    return MtebEncoder.of_grace(encoder).mteb_model_meta.revision


def test_the_mean_of_training_texts_is_removed_wherever_an_export_embeds(train: Any, tmp_path: Path) -> None:
    run = train(
        "job.steps=1", "callbacks.export=[merged,adapter]", "++backbone.lora.rank=4", folder=tmp_path / "run"
    ).path
    plain = encoder_of(run)
    raw = {mode: np.asarray(plain.encode(TEXTS, mode=mode)) for mode in ("rationale", "prompt_only")}
    figures = fitted(run, "job.center_texts=20")
    assert figures["center/texts"] == 20
    assert abs(figures["center/cosine_after"]) < 0.1 < figures["center/cosine_before"]

    merged, adapter = run / "export" / "merged", run / "export" / "adapter"
    assert (merged / CENTER_FILE).read_bytes() == (adapter / CENTER_FILE).read_bytes()
    cache = RationaleCache(tmp_path / "embeddings")
    encoder = encoder_of(run, cache)
    assert encoder.center is not None
    for mode, vectors in raw.items():
        expected = vectors - getattr(encoder.center, mode)
        np.testing.assert_allclose(encoder.encode(TEXTS, mode=mode), expected, atol=1e-5)
        unit = encoder.encode(TEXTS, mode=mode, normalize_embeddings=True, truncate_dim=8)
        np.testing.assert_allclose(unit, expected[:, :8] / np.linalg.norm(expected[:, :8], axis=1)[:, None], atol=1e-5)
    expected = raw["rationale"] - encoder.center.rationale
    model = SentenceTransformer(str(adapter), trust_remote_code=True, device="cpu", model_kwargs={"cache": False})
    np.testing.assert_allclose(model.encode(TEXTS), expected, atol=1e-5)

    # What a cache has is not centred: an encoder without a mean finds its own there.
    server, kind = Answers(encoder, EncodeConfig()), Kind(Role.QUERY, encoder.max_tokens)
    for answer in (server.known(TEXTS, kind), server.compute(TEXTS, kind)):
        assert answer is not None
        np.testing.assert_allclose(answer.vectors, expected, atol=1e-5)
    assert revision(encoder) != revision(plain) == revision(_without(encoder))
    with pytest.raises(ConfigError, match=r"samples=2 with backbone\.pooling\.transform=center"):
        encoder.encode(TEXTS, samples=2, temperature=0.5)
    with pytest.raises(ConfigError, match=r"samples=2 with backbone\.pooling\.transform=center"):
        Answers(encoder, EncodeConfig(samples=2, temperature=0.5))
    with pytest.raises(ConfigError, match=r"pooling\.transform=center: a cosine of centred embeddings"):
        encoder.explain(*TEXTS[:2])

    encoder.save_pretrained(tmp_path / "saved")
    np.testing.assert_allclose(encoder_of(tmp_path / "saved").encode(TEXTS), expected, atol=1e-5)
    (tmp_path / "saved" / CENTER_FILE).unlink()
    with pytest.raises(ConfigError, match=r"center\.safetensors, .*cannot be read|cannot be read .*job=fit_center"):
        encoder_of(tmp_path / "saved")


def _without(encoder: GraceEncoder) -> GraceEncoder:
    encoder_without = encoder_of(Path(encoder.name))
    encoder_without.center = None
    return encoder_without


def test_a_prompt_only_export_stays_one_of_stock_modules(
    train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train("job.steps=1", "callbacks.export=[merged]", "method=contrastive", folder=tmp_path / "run").path
    folder = run / "export" / "merged"
    raw = np.asarray(encoder_of(folder).encode(TEXTS))
    (tmp_path / "texts.txt").write_text("\n".join(f"text number {number} of some" for number in range(30)))
    for most in (10, 20):  # a second mean takes the place of the first
        assert fitted(run, f"job.input={tmp_path / 'texts.txt'}", f"job.center_texts={most}")["center/texts"] == most
    encoder = encoder_of(folder)
    assert encoder.center is not None and encoder.center.rationale is None
    expected = raw - encoder.center.prompt_only
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-5)
    stock = SentenceTransformer(str(folder), device="cpu")
    np.testing.assert_allclose(stock.encode(TEXTS), expected, atol=2e-5)
    monkeypatch.setattr("grace_exp.encoder.encoder.embed_corpus", None)  # it is said before anything is embedded
    with pytest.raises(
        ConfigError, match=r"has no mean for the mode rationale; fit one: .*job\.encode\.mode=rationale"
    ):
        encoder.encode(TEXTS, mode="rationale")


def test_a_run_has_no_centred_pooling_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"training pools without it.*job=fit_center"):
        compose_config(["+experiment=demo_tiny", "backbone.pooling.transform=center"], tmp_path)
    with pytest.raises(ConfigError, match=r"job=fit_center needs job\.model"):
        compose_config(FIT, tmp_path)
