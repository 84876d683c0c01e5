"""MTEB's tasks call the model correctly, and stored results are not computed again."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mteb.abstasks.aggregate_task_metadata import AggregateTaskMetadata
from mteb.abstasks.aggregated_task import AbsTaskAggregate
from mteb.mocks.mock_tasks.reranking import MockRerankingTask
from mteb.mocks.mock_tasks.retrieval import MockRetrievalTask
from mteb.mocks.mock_tasks.sts import MockMultilingualSTSTask, MockSTSTask
from mteb.models.models_protocols import EncoderProtocol
from mteb.types import PromptType

from grace_exp.encoder.encoder import GraceEncoder
from grace_exp.evaluation.mteb.adapter import MtebEncoder
from grace_exp.evaluation.mteb.mteb_results import TaskScore
from grace_exp.evaluation.mteb.run import evaluate_tasks


class HashModel:
    """Stands for a model of sentence-transformers: a text's vector is its hash. Keeps what it was asked."""

    def __init__(self, prompts: dict[str, str] | None = None) -> None:
        self.prompts = prompts or {}
        self.calls: list[tuple[list[str], str | None]] = []

    def encode(self, texts: list[str], prompt_name: str | None = None, **kwargs: Any) -> np.ndarray:
        assert kwargs == {"batch_size": 4, "show_progress_bar": False}
        self.calls.append((texts, prompt_name))
        return np.array([list(hashlib.sha256(text.encode()).digest()) for text in texts], dtype=np.float64) - 128


def adapted(model: HashModel, revision: str = "1") -> MtebEncoder:
    return MtebEncoder.of_sentence_transformer(model, name="owner/hash", revision=revision)  # type: ignore[arg-type]


def asked(model: MtebEncoder, task: Any, side: PromptType | None, *batches: list[str]) -> np.ndarray:
    inputs: Any = [{"text": batch} for batch in batches]
    return model.encode(
        inputs, task_metadata=task.metadata, hf_split="test", hf_subset="default", prompt_type=side, batch_size=4
    )


def test_equal_texts_are_given_once_and_come_back_in_their_places() -> None:
    model = HashModel()
    found = asked(adapted(model), MockSTSTask(), None, ["a", "b"], ["a", "c"])
    assert model.calls == [(["a", "b", "c"], None)]
    assert found.shape == (4, 32) and found.dtype == np.float32
    np.testing.assert_array_equal(found, model.encode(["a", "b", "a", "c"], batch_size=4, show_progress_bar=False))
    assert isinstance(adapted(model), EncoderProtocol)


@pytest.mark.parametrize(
    ("prompts", "side", "name"),
    [
        ("query document", PromptType.query, "query"),
        ("query document", PromptType.document, "document"),
        ("query document", None, None),
        ("query Retrieval", PromptType.query, "Retrieval"),
        ("Retrieval Retrieval-document", PromptType.document, "Retrieval-document"),
        ("Retrieval-query MockRetrievalTask", PromptType.query, "MockRetrievalTask"),
        ("MockRetrievalTask MockRetrievalTask-query", PromptType.query, "MockRetrievalTask-query"),
        ("STS", PromptType.query, None),
    ],
)
def test_the_most_specific_prompt_counts(prompts: str, side: PromptType | None, name: str | None) -> None:
    model = HashModel(dict.fromkeys(prompts.split(), "text"))
    asked(adapted(model), MockRetrievalTask(), side, ["a"])
    assert model.calls == [(["a"], name)]


@pytest.fixture(scope="module")
def encoder() -> GraceEncoder:
    return GraceEncoder.from_pretrained("tiny", cache=False, max_tokens=4)


def test_our_encoder_is_told_the_side_of_the_texts(encoder: GraceEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    roles: list[Any] = []
    whole = encoder.encode

    def encode(texts: list[str], prompt_name: str | None = None, **settings: Any) -> Any:
        roles.append((settings["role"], prompt_name, settings["mode"]))
        return whole(texts, prompt_name, **settings)

    monkeypatch.setattr(encoder, "encode", encode)
    monkeypatch.setitem(encoder.prompts, "Retrieval-document", "Read it.")
    model = MtebEncoder.of_grace(encoder, mode="query_only")
    for side in (PromptType.query, PromptType.document, None):
        vectors = asked(model, MockRetrievalTask(), side, ["a text"])
        assert vectors.shape == (1, encoder.get_embedding_dimension())
    assert roles == [
        ("query", None, "query_only"),
        ("document", "Retrieval-document", "query_only"),
        (None, None, "query_only"),
    ]


def test_the_revision_is_of_everything_that_decides_an_embedding(encoder: GraceEncoder) -> None:
    def revision(**settings: Any) -> str:
        found = MtebEncoder.of_grace(encoder, **settings).mteb_model_meta.revision
        assert found is not None
        return found

    found = [revision(), revision(temperature=1.0), revision(temperature=1.0, seed=1), revision(mode="prompt_only")]
    assert revision() == found[0]
    for attribute, value in (
        ("max_tokens", 5),
        ("truncate_dim", 8),
        ("prompt", replace(encoder.prompt, system="Say it again.")),
        ("prompts", {"STS": "Compare."}),
        ("template_kwargs", {"date_string": "today"}),
        ("fingerprint", "f" * 32),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(encoder, attribute, value)
            found.append(revision())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found.append(revision())
    assert len(set(found)) == len(found)
    assert revision() == found[0]


def run(model: MtebEncoder, folder: Path, *tasks: Any) -> tuple[list[TaskScore], list[str]]:
    lines: list[str] = []
    scores = evaluate_tasks(model, tasks, folder, batch_size=4, announce=lines.append)
    return scores, lines


def test_stored_results_are_read_for_the_same_revision_only(tmp_path: Path) -> None:
    model = HashModel()
    first, lines = run(adapted(model), tmp_path, MockSTSTask())
    calls = len(model.calls)
    assert calls > 0 and "stored" not in lines[0]
    again, lines = run(adapted(model), tmp_path, MockSTSTask())
    assert len(model.calls) == calls and "stored" in lines[0]
    assert again[0].score == pytest.approx(first[0].score, abs=1e-3)  # files keep six digits
    run(adapted(model, revision="2"), tmp_path, MockSTSTask())
    assert len(model.calls) == 2 * calls


def test_a_half_written_or_outdated_result_is_computed_again(tmp_path: Path) -> None:
    model = HashModel()
    (score,), _ = run(adapted(model), tmp_path, MockSTSTask())
    (file,) = tmp_path.rglob("MockSTSTask.json")
    whole = file.read_text()
    for content in (whole[: len(whole) // 2], "", whole.replace('"dataset_revision": "', '"dataset_revision": "old')):
        assert content != whole
        file.write_text(content)
        (again,), lines = run(adapted(model), tmp_path, MockSTSTask())
        assert "stored" not in lines[0] and again.score == pytest.approx(score.score)
        assert file.read_text() != content


def test_subsets_that_were_not_asked_for_do_not_count(tmp_path: Path) -> None:
    model = adapted(HashModel())
    (both,), _ = run(model, tmp_path, MockMultilingualSTSTask())
    english = MockMultilingualSTSTask().filter_languages(["eng"])
    (one,), lines = run(model, tmp_path, english)
    assert "stored" in lines[0] and english.hf_subsets == ["eng"]
    result = (tmp_path / "results" / "owner__hash" / "1" / "MockMultilingualSTSTask.json").read_text()
    assert '"hf_subset": "fra"' in result
    assert one.metric == both.metric and one.category == "sts"


class Together(AbsTaskAggregate):
    metadata = AggregateTaskMetadata(
        name="Together",
        description="Two tasks in one.",
        type="Retrieval",
        main_score="ndcg_at_10",
        tasks=[MockRetrievalTask(), MockRerankingTask()],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
    )


def test_an_aggregate_counts_once_with_the_mean_of_its_tasks(tmp_path: Path) -> None:
    scores, lines = run(adapted(HashModel()), tmp_path, Together(), MockSTSTask())
    assert [(score.task, score.category) for score in scores] == [("Together", "retrieval"), ("MockSTSTask", "sts")]
    assert [line.split()[1] for line in lines] == ["MockRetrievalTask", "MockRerankingTask", "MockSTSTask"]
    assert len(list(tmp_path.rglob("Together.json"))) == 1
