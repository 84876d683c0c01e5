"""A student learns from a run, is exported and measured."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from grace_exp import GraceEncoder
from grace_exp.config.compose import compose_config
from grace_exp.data.wordnet import load_wordnet
from grace_exp.errors import ConfigError, DataError
from grace_exp.jobs import run as run_job
from grace_exp.policy.tiny import tiny_tokenizer

TEXTS = ["A cat sleeps.", "  Rain in May ", "word " * 500, "ü 東京"]
EVALUATION = ["evaluation=demo", "~evaluation.sets.stsb", "evaluation.sets.wordnet.size=8", "evaluation.minilm=false"]


@pytest.fixture(scope="module")
def teacher(train: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    overrides = ["job.steps=1", "optim.learning_rate=0.01", "callbacks.export=[merged]", *EVALUATION]
    folder: Path = train(*overrides, folder=tmp_path_factory.mktemp("teacher") / "run").path
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 glosses, one of them twice, and one of the held-out set's."""
    glosses = list(dict.fromkeys(str(row["positive"]) for row in load_wordnet("train")))[:64]
    heldout = str(next(iter(load_wordnet("dev")))["positive"])
    path = tmp_path_factory.mktemp("corpus") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*glosses, glosses[0], heldout]))
    return path


def distilled(teacher: Path, corpus: Path, folder: Path, *overrides: str) -> dict[str, float]:
    settings = ["+experiment=demo_tiny", "job=distill", "hardware=cpu", "hardware.threads=1", "callbacks.progress=none"]
    settings += [f"job.model={teacher}", f"job.input={corpus}", f"cache_dir={teacher.parent / 'cache'}", *EVALUATION]
    return run_job(compose_config([*settings, "job.distill.batch_size=16", *overrides], folder))


def test_a_student_of_the_same_backbone_is_stock_measured_and_repeatable(
    teacher: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = ["evaluation.sets.wordnet.size=null"]  # the held-out gloss is one of it
    figures = distilled(teacher, corpus, tmp_path, "job.distill.epochs=4", "job.distill.learning_rate=0.01", *whole)
    assert figures["distill/texts"] == 64
    assert "1 texts of evaluation.sets are left out" in capsys.readouterr().out
    record = json.loads((tmp_path / "export" / "distillation.json").read_text())
    assert len(record["loss"]) == 4 and record["loss"][-1] < 0.8 * record["loss"][0]
    assert list(record["sets"]["wordnet"]["rows"]) == ["teacher", "teacher, prompt only", "student"]
    assert record["sets"]["wordnet"]["kept"] is None  # the run was measured on 8 of the set

    folder = tmp_path / "export" / "student"
    types = [module["type"] for module in json.loads((folder / "modules.json").read_text())]
    assert all(name.startswith("sentence_transformers.") for name in types)
    student = SentenceTransformer(str(folder), device="cpu")
    encoder = GraceEncoder.from_pretrained(folder, cache=False, device="cpu")
    assert encoder.mode == "prompt_only"
    np.testing.assert_allclose(student.encode(TEXTS), encoder.encode(TEXTS), atol=1e-5)
    before = GraceEncoder.from_pretrained(teacher, cache=False, device="cpu").encode(TEXTS, mode="prompt_only")
    assert np.abs(np.asarray(before) - student.encode(TEXTS)).max() > 0.01
    monkeypatch.chdir(folder.parent)
    (snippet,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.S)
    exec(compile(snippet, "README.md", "exec"), {})

    distilled(teacher, corpus, tmp_path / "again", "job.distill.epochs=4", "job.distill.learning_rate=0.01", *whole)
    again = json.loads((tmp_path / "again" / "export" / "distillation.json").read_text())
    assert again["loss"] == record["loss"]


def test_another_student_is_mapped_to_the_teachers_width(
    teacher: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = SentenceTransformer(
        modules=[StaticEmbedding(tiny_tokenizer().backend_tokenizer, embedding_dim=24)], device="cpu"
    )
    small.save(str(tmp_path / "small"), create_model_card=False)
    figures = distilled(teacher, corpus, tmp_path / "run", f"job.distill.student={tmp_path / 'small'}")
    record = json.loads((tmp_path / "run" / "export" / "distillation.json").read_text())["sets"]["wordnet"]
    assert list(record["rows"]) == ["teacher", "teacher, prompt only", "student, before", "student"]
    assert record["rows"]["student"]["figure"] == figures["distill/wordnet/student"]
    before = json.loads((teacher / "evaluation" / "before.json").read_text())["wordnet"]["rationale"]
    assert record["untrained"] == before
    # The teacher under distillation is the run after training, with the same rationales.
    after = json.loads((teacher / "evaluation" / "after.json").read_text())["wordnet"]["rationale"]
    np.testing.assert_allclose(record["rows"]["teacher"]["values"], after["values"], atol=1e-6)
    assert "wordnet: the student " in capsys.readouterr().out
    student = SentenceTransformer(str(tmp_path / "run" / "export" / "student"), device="cpu")
    assert student.encode(TEXTS).shape == (4, 64)
    assert small.encode(TEXTS).shape == (4, 24)


def test_what_cannot_be_distilled_is_said(teacher: Path, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"64 distinct texts, fewer than one batch of job\.distill\.batch_size=65"):
        distilled(teacher, corpus, tmp_path, "job.distill.batch_size=65", "evaluation.sets.wordnet.size=null")
    folder = tmp_path / "by_role"
    GraceEncoder.from_pretrained("tiny", cache=False, device="cpu", max_tokens=4).save_pretrained(folder)
    settings = json.loads((folder / "grace_config.json").read_text())
    settings["prompt"]["instructions"]["query"] = "A question."
    (folder / "grace_config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=r"job\.distill\.student=null: .*instructions by role"):
        distilled(folder, corpus, tmp_path / "run")
