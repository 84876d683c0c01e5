"""The rule of mode=adaptive: fitted by one command, kept in every export, measured beside the other modes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from huggingface_hub import ModelCard
from sentence_transformers import SentenceTransformer

from grace_exp import GraceEncoder
from grace_exp.config.compose import compose_config
from grace_exp.data.wordnet import load_wordnet
from grace_exp.encoder.adaptive_fit import FittedRule, PairEmbeddings, fit_rule
from grace_exp.encoder.adaptive_rule import read_rule
from grace_exp.errors import ConfigError, DataError, MissingResourceError
from grace_exp.jobs import fit_adaptive
from grace_exp.jobs import run as run_job

LORA = "++backbone.lora.rank=4"
EVALUATION = ["evaluation=demo", "evaluation.sets.stsb.size=6", "evaluation.sets.wordnet.size=6"]
COMMON = ["+experiment=demo_tiny", "hardware=cpu", "hardware.threads=1", "callbacks.progress=none", *EVALUATION]
COMMON += ["evaluation.minilm=false", "evaluation.bootstrap=20"]


def test_a_rule_is_fitted_exported_and_measured(train: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = train("job.steps=1", "callbacks.export=[merged,adapter]", LORA, folder=tmp_path / "run").path
    rows = [{"query": row["query"], "positive": row["positive"]} for row in load_wordnet("dev")[:40]]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, [*rows, rows[-1]])))
    fit = [*COMMON, "job=fit_adaptive", f"job.input={tmp_path / 'pairs.jsonl'}", f"cache_dir={tmp_path / 'cache'}"]
    fit += ["job.adaptive.share=0.5"]
    with pytest.raises(ConfigError, match=r"no adaptive_rule\.json.*job=fit_adaptive"):
        embed = [*COMMON, "job=embed", f"job.model={trained}", "job.encode.mode=adaptive"]
        embed += [f"job.input={tmp_path / 'pairs.jsonl'}", "job.column=query", f"job.output={tmp_path / 'v.npy'}"]
        run_job(compose_config(embed, tmp_path / "embed"))
    figures = run_job(compose_config([*fit, f"job.model={trained}"], tmp_path / "fit"))
    assert figures["adaptive/share"] == pytest.approx(0.5, abs=0.1)
    assert figures["adaptive/gain/best"] >= max(figures["adaptive/gain/rule"], figures["adaptive/gain/always"], 0)
    report = json.loads((tmp_path / "fit" / "adaptive.json").read_text())
    assert report["pairs"] == figures["adaptive/pairs"] <= 40
    shown = capsys.readouterr().out
    assert "pairs are left out" in shown and "Against mode=rationale" in shown

    rules = [read_rule(trained / "export" / name) for name in ("merged", "adapter")]
    assert rules[0] is not None and rules[0] == rules[1]
    texts = [row["query"] for row in rows[:8]]
    encoder = GraceEncoder.from_pretrained(trained, cache=False, device="cpu")
    vectors = np.asarray(encoder.encode(texts, mode="adaptive"))
    model = SentenceTransformer(str(trained / "export" / "merged"), trust_remote_code=True, device="cpu")
    np.testing.assert_allclose(model.encode(texts, mode="adaptive"), vectors, atol=1e-5)  # type: ignore[call-overload]
    np.testing.assert_allclose(model.encode(texts), encoder.encode(texts), atol=1e-5)

    controls = [*COMMON, "job=evaluate", f"job.resume={trained}", LORA, "evaluation.controls=true"]
    found = run_job(compose_config([*controls, "rollout.max_tokens=6"], tmp_path / "controls"))
    assert {"controls/stsb/adaptive", "controls/wordnet/adaptive/centred"} <= found.keys()
    table = pd.read_csv(tmp_path / "controls" / "evaluation" / "controls.csv").set_index(["set", "row"])
    for name in ("stsb", "wordnet"):
        tokens = table.tokens_per_text[name]
        assert tokens["prompt_only"] <= tokens["adaptive"] <= tokens["rationale"]
    assert "wordnet: adaptive takes " in capsys.readouterr().out
    for kind in ("merged", "adapter"):
        card = ModelCard.load(trained / "export" / kind / "README.md")
        rows = [line for line in card.text.splitlines() if line.startswith("| wordnet | `")]
        expected = [
            "prompt_only",
            "rationale",
            "query_only",
            "adaptive",
            "empty",
            "random_words",
            "repeated",
            "swapped",
        ]
        assert [line.split("`")[1] for line in rows] == expected
        assert card.text.count("## Modes and control rationales") == card.text.count("## Use") == 1
        assert card.data.library_name == "sentence-transformers"


def test_a_rule_is_fitted_on_what_the_model_gives_within_the_budget(
    train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = train("job.steps=1", "callbacks.export=[merged]", folder=tmp_path / "run").path
    rows = [{"query": row["query"], "positive": row["positive"]} for row in load_wordnet("dev")[:40]]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    fit = [*COMMON, f"job.model={trained}", f"job.input={tmp_path / 'pairs.jsonl'}", f"cache_dir={tmp_path / 'cache'}"]
    run_job(compose_config([*fit, "job=fit_center", "job.column=query"], tmp_path / "center"))
    given: list[PairEmbeddings] = []

    def fitting(embeddings: PairEmbeddings, *settings: Any) -> FittedRule:
        given.append(embeddings)
        return fit_rule(embeddings, *settings)

    monkeypatch.setattr(fit_adaptive, "fit_rule", fitting)
    budget = ["job=fit_adaptive", "job.encode.max_tokens=2"]
    run_job(compose_config([*fit, *budget], tmp_path / "fit"))
    assert json.loads((tmp_path / "fit" / "adaptive.json").read_text())["tokens_per_text"]["always"] <= 2

    (embeddings,) = given
    encoder = GraceEncoder.from_pretrained(trained, cache=False, device="cpu")
    assert encoder.center is not None
    centred = [encoder.encode(rows[0]["query"], mode=mode, max_tokens=2) for mode in ("prompt_only", "rationale")]
    np.testing.assert_allclose([vectors[0] for vectors in embeddings.queries], centred, atol=1e-5)
    assert embeddings.read is not None  # as the rule meets them: no mean is removed before it has chosen
    np.testing.assert_allclose(embeddings.read[0], embeddings.queries[0] + encoder.center.prompt_only, atol=1e-5)


def test_what_no_rule_can_be_fitted_for_is_said_before_a_model_loads(tmp_path: Path) -> None:
    row = {"query": "a", "positive": "b"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row))
    fit = [*COMMON, "job=fit_adaptive", f"job.input={tmp_path / 'pairs.jsonl'}", f"cache_dir={tmp_path / 'cache'}"]
    with pytest.raises(MissingResourceError, match="tiny is neither a model folder nor a run with an export"):
        run_job(compose_config([*fit, "job.model=tiny"], tmp_path / "out"))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(DataError, match="1 pairs are left, and a rule needs 20"):
        run_job(compose_config([*fit, f"job.model={tmp_path / 'model'}"], tmp_path / "out"))
    with pytest.raises(ConfigError, match=r"job=fit_adaptive needs job\.model"):
        compose_config(fit, tmp_path / "out")
