"""Whole benchmarks: MTEB's mock tasks, the job, its caches, several processes."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest
from mteb.results import TaskResult

from grace_exp.config.compose import compose_config, conf_dir
from grace_exp.config.evaluation import BenchmarkConfig
from grace_exp.encoder.encoder import GraceEncoder
from grace_exp.errors import ConfigError, MissingResourceError
from grace_exp.evaluation.mteb.adapter import MtebEncoder
from grace_exp.evaluation.mteb.items import load_items
from grace_exp.evaluation.mteb.run import evaluate_tasks
from grace_exp.evaluation.mteb.suites import suite_tasks
from grace_exp.jobs import run
from grace_exp.jobs.benchmark import minilm
from grace_exp.rollout.transformers_engine import TransformersEngine

# Tasks whose data is in the package or in one that the tests need anyway: nothing is fetched.
HERE = ["WordNetGlosses.small", "WordNetClasses.small", "WordNetSenses.small", "StsbTest.small"]
SMALL = [
    "+experiment=demo_tiny",
    "job=evaluate",
    "evaluation=offline_small",
    f"evaluation.benchmark.tasks=[{','.join(HERE)}]",
    "evaluation.max_tokens=4",
    "hardware.threads=1",
]


def test_our_encoder_passes_mtebs_mock_tasks_of_every_category() -> None:
    encoder = GraceEncoder.from_pretrained("tiny", cache=False, max_tokens=2)
    results = mteb.mock_run(MtebEncoder.of_grace(encoder))
    ran = {name: result for name, result in results.items() if result is not None}
    assert {name for name, result in ran.items() if not isinstance(result, TaskResult)} == set()
    kinds = {task.metadata.type for task in mteb.mocks.ALL_MOCK_TASK_TEST_GRID if task.metadata.name in ran}
    assert kinds >= {
        "Retrieval",
        "Reranking",
        "Clustering",
        "PairClassification",
        "Classification",
        "STS",
        "Summarization",
    }


def test_all_minilm_reaches_its_published_figure_on_sts_benchmark(tmp_path: Path) -> None:
    """82.03: https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2, STSBenchmark, cosine Spearman."""
    tasks = suite_tasks(BenchmarkConfig(suite="offline", tasks=["StsbTest"]), tmp_path)
    (score,) = evaluate_tasks(minilm(), tasks, tmp_path, batch_size=64, announce=lambda line: None)
    assert score.score == pytest.approx(82.03, abs=0.1)


class RandomModel:
    """Gives random vectors."""

    prompts: dict[str, str] = {}  # noqa: RUF012

    def __init__(self) -> None:
        self.generator = np.random.default_rng(0)

    def encode(self, texts: list[str], **settings: Any) -> np.ndarray:
        return self.generator.standard_normal((len(texts), 64))


def test_random_vectors_reach_nothing(tmp_path: Path) -> None:
    names = ["WordNetGlosses", "WordNetSenses", "WordNetClasses", "StsbTest"]
    model = MtebEncoder.of_sentence_transformer(RandomModel(), name="owner/random", revision="0")  # type: ignore[arg-type]
    tasks = suite_tasks(BenchmarkConfig(suite="offline", tasks=names), tmp_path)
    found = {
        score.task: score.score
        for score in evaluate_tasks(model, tasks, tmp_path, batch_size=64, announce=lambda line: None)
    }
    assert found["WordNetGlosses"] < 2 and found["WordNetClasses"] < 8  # 1 of 900 glosses; no mutual information
    assert abs(found["StsbTest"]) < 3 / 1379**0.5 * 100  # three standard errors of a correlation
    assert found["WordNetSenses"] == pytest.approx(50, abs=6)  # half of the pairs


Evaluate = Callable[..., tuple[dict[str, float], Path]]


@pytest.fixture
def evaluate(tmp_path: Path) -> Evaluate:
    def evaluated(name: str, *overrides: str) -> tuple[dict[str, float], Path]:
        folder = tmp_path / name
        config = compose_config([*SMALL, f"cache_dir={tmp_path / 'cache'}", *overrides], folder)
        return run(config), folder

    return evaluated


def test_the_job_prints_the_table_and_needs_no_model_the_second_time(
    evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, folder = evaluate("first")
    shown = capsys.readouterr().out
    for words in ("retrieval", "clustering", "pair_classification", "sts", "average over tasks", "1/4  WordNetGlosses"):
        assert words in shown
    assert set(first) == {
        *(f"mteb/{name}" for name in HERE),
        *(f"mteb/category/{name}" for name in ("retrieval", "clustering", "pair_classification", "sts")),
        "mteb/average_over_tasks",
        "mteb/average_over_categories",
    }
    with (folder / "evaluation" / "offline_small.csv").open() as file:
        rows = {row["task"]: float(row["score"]) for row in csv.DictReader(file)}
    assert rows == {name: pytest.approx(first[f"mteb/{name}"], abs=1e-3) for name in HERE}
    items = load_items(folder / "evaluation" / "offline_small_items.json")
    assert {name: some.figure() for name, some in items.items()} == {
        name: pytest.approx(rows[name], abs=1e-3) for name in HERE
    }

    def not_again(*args: object) -> None:
        raise AssertionError("the model was asked")

    monkeypatch.setattr(TransformersEngine, "generate", not_again)
    again, folder = evaluate("again")
    assert load_items(folder / "evaluation" / "offline_small_items.json").keys() == items.keys()
    assert again == pytest.approx(first, abs=1e-3)
    assert capsys.readouterr().out.count("(stored)") == 4


def test_killed_half_way_it_goes_on_where_it_was(evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    generate = TransformersEngine.generate

    def counted(self: TransformersEngine, requests: Any) -> Any:
        if len(written) > limit:
            raise KeyboardInterrupt
        written.extend(str(request.prompt_ids) for request in requests)
        return generate(self, requests)

    monkeypatch.setattr(TransformersEngine, "generate", counted)
    limit = 150  # in the second task
    with pytest.raises(KeyboardInterrupt):
        evaluate("killed")
    assert len(written) > limit
    limit = 10_000
    evaluate("continued")
    assert len(written) == len(set(written)) > 250  # nothing twice


def test_processes_share_the_texts_and_find_what_one_finds(evaluate: Evaluate, tmp_path: Path) -> None:
    tasks = "evaluation.benchmark.tasks=[WordNetSenses.small,WordNetClasses.small]"
    one, _ = evaluate("one", tasks)
    cache = tmp_path / "cache of two"
    command = [*SMALL, tasks, f"cache_dir='{cache}'", "hardware.devices=2", "hardware.strategy=ddp"]
    command.append(f"hydra.run.dir={tmp_path / 'two'}")
    environment = os.environ | {"PYTHONPATH": str(conf_dir().parent / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "grace_exp", *command],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("average over tasks") == 1  # one of them speaks
    files = {file.stem: json.loads(file.read_text()) for file in cache.rglob("mteb/results/**/*.small.json")}
    found = {f"mteb/{name}": 100 * result["scores"]["test"][0]["main_score"] for name, result in files.items()}
    assert found == pytest.approx({name: one[name] for name in found}, abs=0.01)
    assert len(found) == 2


def test_figures_go_to_wandb(evaluate: Evaluate) -> None:
    found, folder = evaluate("wandb", "logger=wandb", "evaluation.benchmark.tasks=[WordNetSenses.small]")
    (record,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    summary = subprocess.run(
        [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--summary", record],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "mteb/category/pair_classification" in summary and "mteb/average_over_tasks" in summary
    assert found["mteb/average_over_tasks"] == found["mteb/WordNetSenses.small"]


def test_what_cannot_be_had_is_said_before_a_model_is_loaded(
    evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_loaded(*args: object, **settings: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("grace_exp.jobs.benchmark.build_encoder", not_loaded)
    with pytest.raises(MissingResourceError, match=r"data of 16 task\(s\) lies on the Hugging Face hub"):
        evaluate("hub", "evaluation=paper_16", "evaluation.benchmark.tasks=null")
    with pytest.raises(ConfigError, match="has no Nonsense"):
        evaluate("task", "evaluation.benchmark.tasks=[Nonsense]")
    with pytest.raises(ConfigError, match=r"prompts has 'Retrieval-side': allowed are query, document"):
        evaluate("prompt", "+evaluation.benchmark.prompts={Retrieval-side: 'Read it.'}")


def test_a_task_of_nanobeir_runs_on_made_up_data_and_counts_tokens_and_milliseconds(tmp_path: Path) -> None:
    from datasets import Dataset

    (task,) = suite_tasks(BenchmarkConfig(suite="NanoBEIR", tasks=["NanoSciFactRetrieval"]), tmp_path)

    def load_data(num_proc: int | None = None, **kwargs: Any) -> None:
        texts = ["A cat sleeps.", "Rain in May", "Prices fell by 3 %"]
        corpus = [{"id": f"d{row}", "title": "", "text": text} for row, text in enumerate(texts)]
        queries = [{"id": f"q{row}", "text": text} for row, text in enumerate(texts)]
        relevant = {f"q{row}": {f"d{row}": 1} for row in range(3)}
        (split,) = task.eval_splits
        data = {"corpus": Dataset.from_list(corpus), "queries": Dataset.from_list(queries)}
        task.dataset = {"default": {split: {**data, "relevant_docs": relevant, "top_ranked": None}}}
        task.data_loaded = True

    task.load_data = load_data
    encoder = GraceEncoder.from_pretrained("tiny", cache=False, device="cpu", prompt="Read.", max_tokens=4)
    model = MtebEncoder.of_grace(encoder, mode="rationale")
    (score,) = evaluate_tasks(model, [task], tmp_path, batch_size=8, announce=lambda line: None)
    assert (score.task, score.metric) == ("NanoSciFactRetrieval", "ndcg_at_10")
    assert 0 < score.score <= 100
    assert score.tokens_per_text is not None and 1 <= score.tokens_per_text <= 4
    assert score.ms_per_text is not None and score.ms_per_text > 0
