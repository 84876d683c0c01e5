"""Exports are models of sentence-transformers, with the encoder's vectors."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import (
    EmbeddingSimilarityEvaluator,
    InformationRetrievalEvaluator,
)
from sentence_transformers.util import mine_hard_negatives, semantic_search

from grace_exp import GraceEncoder

TEXTS = ["A cat sleeps.", "  Rain in May ", "Prices fell by 3 % <|im_end|>", "x " * 200, "", "ü 東京"]


@pytest.fixture(scope="module")
def rationale_run(train: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    overrides = ["job.steps=1", "optim.learning_rate=0.01", "callbacks.export=[merged,adapter]"]
    instructions = ["prompt.instructions.query='A question.'"]
    folder: Path = train(
        *overrides, *instructions, "++backbone.lora.rank=4", folder=tmp_path_factory.mktemp("st") / "run"
    ).path
    return folder / "export"


@pytest.fixture(scope="module")
def prompt_only(train: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    overrides = ["job.steps=1", "optim.learning_rate=0.01", "callbacks.export=[merged]", "method=contrastive"]
    folder: Path = train(*overrides, folder=tmp_path_factory.mktemp("stock") / "run").path
    return folder / "export" / "merged"


def encoder_of(folder: Path, **settings: Any) -> GraceEncoder:
    return GraceEncoder.from_pretrained(folder, cache=False, device="cpu", **settings)


@pytest.mark.parametrize("kind", ["merged", "adapter"])
def test_an_export_gives_the_encoders_vectors(rationale_run: Path, kind: str) -> None:
    encoder = encoder_of(rationale_run / kind)
    model = SentenceTransformer(
        str(rationale_run / kind), trust_remote_code=True, device="cpu", model_kwargs={"cache": False}
    )
    expected = encoder.encode(TEXTS)
    np.testing.assert_allclose(model.encode(TEXTS), expected, atol=1e-5)
    np.testing.assert_allclose(model.encode_query(TEXTS[:2]), encoder.encode_query(TEXTS[:2]), atol=1e-5)
    np.testing.assert_allclose(model.encode_document(TEXTS[:2]), encoder.encode_document(TEXTS[:2]), atol=1e-5)
    assert np.abs(np.asarray(model.encode_query(TEXTS[:2])) - model.encode_document(TEXTS[:2])).max() > 1e-3
    named = encoder.encode(TEXTS[:1], prompt="In French.")
    np.testing.assert_allclose(model.encode(TEXTS[:1], prompt="In French."), named, atol=1e-5)
    alone = encoder.encode(TEXTS[:2], mode="prompt_only")
    np.testing.assert_allclose(model.encode(TEXTS[:2], mode="prompt_only"), alone, atol=1e-5)


def test_everything_else_of_sentence_transformers_works(rationale_run: Path, tmp_path: Path) -> None:
    encoder = encoder_of(rationale_run / "merged")
    model = encoder.as_sentence_transformer()
    vectors = np.asarray(model.encode(TEXTS))
    np.testing.assert_allclose(vectors, encoder.encode(TEXTS), atol=1e-5)
    assert model.get_embedding_dimension() == 64
    assert model.encode(TEXTS, truncate_dim=8).shape == (6, 8)
    assert model.encode(TEXTS, precision="int8").dtype == np.int8
    assert model.encode(TEXTS, precision="binary").shape == (6, 8)
    np.testing.assert_allclose(np.linalg.norm(model.encode(TEXTS, normalize_embeddings=True), axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(model.similarity(vectors, vectors), encoder.similarity(vectors, vectors), atol=1e-5)
    model.save(str(tmp_path / "saved"), create_model_card=False)
    again = SentenceTransformer(str(tmp_path / "saved"), trust_remote_code=True, device="cpu")
    np.testing.assert_allclose(again.encode(TEXTS[:2]), vectors[:2], atol=1e-5)

    hits = semantic_search(model.encode(["A cat sleeps."]), model.encode(TEXTS), top_k=1)
    assert hits[0][0]["corpus_id"] == 0
    sts = EmbeddingSimilarityEvaluator(TEXTS[:3], TEXTS[1:4], [0.1, 0.5, 0.9], write_csv=False)
    assert -1 <= model.evaluate(sts)["spearman_cosine"] <= 1
    documents = {str(number): text for number, text in enumerate(TEXTS)}
    search = InformationRetrievalEvaluator({"q": "A cat sleeps."}, documents, {"q": {"0"}}, write_csv=False)
    assert model.evaluate(search)["cosine_ndcg@10"] > 0
    pairs = Dataset.from_dict({"query": TEXTS[:4], "answer": [f"{text} yes" for text in TEXTS[:4]]})
    mined = mine_hard_negatives(pairs, model, num_negatives=1, range_max=3, verbose=False)
    assert mined.column_names == ["query", "answer", "negative"]


def test_processes_of_sentence_transformers_give_the_same_vectors(rationale_run: Path) -> None:
    script = f"""
from sentence_transformers import SentenceTransformer
if __name__ == "__main__":
    model = SentenceTransformer({str(rationale_run / "merged")!r}, trust_remote_code=True, device="cpu")
    import numpy as np
    texts = ["a", "b", "c"]
    apart = model.encode(texts, device=["cpu", "cpu"], chunk_size=2)
    np.testing.assert_allclose(apart, model.encode(texts), atol=1e-5)
"""
    file = rationale_run.parent / "apart.py"
    file.write_text(script)
    subprocess.run([sys.executable, str(file)], check=True, timeout=120)


def test_without_leave_or_package_loading_fails_and_says_what_to_do(rationale_run: Path) -> None:
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        SentenceTransformer(str(rationale_run / "merged"), device="cpu")
    script = f"""
import sys
sys.modules["grace_exp"] = None
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "grace_exp":
            raise ModuleNotFoundError("No module named 'grace_exp'", name="grace_exp")
del sys.modules["grace_exp"]
sys.meta_path.insert(0, Missing())
from sentence_transformers import SentenceTransformer
SentenceTransformer({str(rationale_run / "merged")!r}, trust_remote_code=True, device="cpu")
"""
    failed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert failed.returncode != 0
    assert "pip install -c constraints/cpu.txt -e ." in failed.stderr


def test_prompt_only_models_consist_of_stock_modules(prompt_only: Path) -> None:
    types = [module["type"] for module in json.loads((prompt_only / "modules.json").read_text())]
    assert all(name.startswith("sentence_transformers.") for name in types)
    encoder = encoder_of(prompt_only)
    assert encoder.mode == "prompt_only"
    texts = [*TEXTS, "word " * 500]
    model = SentenceTransformer(str(prompt_only), device="cpu")
    np.testing.assert_allclose(model.encode(texts), encoder.encode(texts), atol=1e-5)
    np.testing.assert_allclose(model.encode_query(texts[:2]), encoder.encode_query(texts[:2]), atol=1e-5)


@pytest.mark.parametrize("kind", ["merged", "adapter", "stock"])
def test_the_snippets_of_the_cards_run(
    rationale_run: Path, prompt_only: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = prompt_only if kind == "stock" else rationale_run / kind
    monkeypatch.chdir(folder.parent)
    snippets = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.S)
    assert len(snippets) >= 2
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), {})


def test_an_export_is_uploaded_whole(rationale_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Any]] = []

    class FakeApi:
        def __init__(self, token: str | None) -> None:
            calls.append(("token", token))

        def create_repo(self, repo_id: str, **settings: Any) -> None:
            calls.append(("create", (repo_id, settings)))

        def upload_folder(self, *, repo_id: str, folder_path: str) -> str:
            calls.append(("files", {path.name for path in Path(folder_path).iterdir()}))
            return f"https://hub/{repo_id}/commit/1"

    monkeypatch.setattr("huggingface_hub.HfApi", FakeApi)
    encoder = encoder_of(rationale_run / "merged")
    assert encoder.push_to_hub("me/model", token="t") == "https://hub/me/model/commit/1"
    GraceEncoder.from_pretrained("tiny", cache=False, device="cpu").push_to_hub("me/tiny", private=False)
    assert calls[1] == ("create", ("me/model", {"private": True, "exist_ok": True}))
    needed = {"README.md", "config.json", "grace_config.json", "modules.json", "grace_module.py", "model.safetensors"}
    assert needed <= calls[2][1]
    assert needed - {"README.md"} <= calls[5][1]
