"""The tasks of each suite, and the message if their data is missing."""

from pathlib import Path

import huggingface_hub
import mteb
import pytest
from huggingface_hub import constants
from mteb.abstasks.abstask import AbsTask

from grace_exp.config.evaluation import BenchmarkConfig
from grace_exp.errors import ConfigError, MissingResourceError
from grace_exp.evaluation.mteb import suites
from grace_exp.evaluation.mteb.mteb_results import CATEGORIES, V1_COUNTS
from grace_exp.evaluation.mteb.suites import PAPER_16, check_available, single_tasks, suite_tasks

HERE = Path("unused")


def tasks_of(suite: str, *names: str) -> list[AbsTask]:
    return suite_tasks(BenchmarkConfig(suite=suite, tasks=list(names) or None), HERE)  # type: ignore[arg-type]


def outline(tasks: list[AbsTask]) -> dict[str, tuple[list[str], list[str]]]:
    return {task.metadata.name: (list(task.eval_splits), list(task.hf_subsets)) for task in tasks}


@pytest.mark.parametrize(
    ("suite", "benchmark", "count"), [("mteb_en_v1", "MTEB(eng, v1)", 56), ("mteb_en_v2", "MTEB(eng, v2)", 41)]
)
def test_names_splits_and_subsets_are_the_benchmarks(suite: str, benchmark: str, count: int) -> None:
    found = outline(tasks_of(suite))
    assert len(found) == count
    assert found == outline(list(mteb.get_benchmark(benchmark).tasks))


def test_v1_has_the_papers_numbers_of_tasks_in_english_only() -> None:
    tasks = tasks_of("mteb_en_v1")
    counts = {name: sum(task.metadata.type == kind for task in tasks) for kind, name in CATEGORIES.items()}
    assert counts == V1_COUNTS
    assert {subset for task in tasks for subset in task.hf_subsets} == {"default", "en", "en-en"}
    assert outline(tasks)["MSMARCO"][0] == ["dev"] and outline(tasks)["STS17"][1] == ["en-en"]
    assert sum(task.metadata.name.startswith("CQADupstack") for task in single_tasks(tasks)) == 12


def test_the_papers_16_tasks_and_a_smoke_test_of_every_category() -> None:
    v1 = outline(tasks_of("mteb_en_v1"))
    for suite in ("paper_16", "smoke"):
        assert {task.metadata.type for task in tasks_of(suite)} == set(CATEGORIES)
        assert outline(tasks_of(suite)).items() <= v1.items()
    assert len(set(PAPER_16)) == 16


@pytest.mark.parametrize("suite", ["offline", "offline_study", "offline_small"])
def test_offline_suites_have_every_category_that_needs_no_hub(suite: str) -> None:
    tasks = tasks_of(suite)
    assert {task.metadata.type for task in tasks} == set(CATEGORIES) - {"Reranking", "Summarization"}
    assert all(type(task).__module__.startswith("grace_exp.") for task in tasks)


def test_small_tasks_have_names_of_their_own_so_that_results_are_not_mixed_up() -> None:
    names = [
        task.metadata.name
        for suite in ("offline", "offline_study", "offline_small", "mteb_en_v1")
        for task in tasks_of(suite)
    ]
    assert len(names) == len(set(names))


def test_some_tasks_of_a_suite_in_the_given_order() -> None:
    assert list(outline(tasks_of("mteb_en_v1", "STS17", "ArguAna"))) == ["STS17", "ArguAna"]
    with pytest.raises(ConfigError, match=r"benchmark\.tasks: suite offline has no STS17; it has WordNetGlosses, "):
        tasks_of("offline", "StsbTest", "STS17")


def _cache(folder: Path, name: str) -> None:
    (folder / f"datasets--mteb--{name}" / "snapshots" / "0123").mkdir(parents=True)


@pytest.fixture
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the hub's cache folder; the hub does not answer."""

    def unreachable(self: object, path: str, timeout: float) -> None:
        raise ConnectionError("no route to the hub\nat all")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    return tmp_path


def test_hub_tasks_without_the_hub_are_named_with_what_to_do(no_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _cache(no_hub, "stsbenchmark-sts")
    tasks = tasks_of("mteb_en_v1", "STSBenchmark", "STS17", "ArguAna")
    with pytest.raises(MissingResourceError) as raised:
        check_available(tasks, HERE)
    message = str(raised.value)
    assert "the data of 2 task(s)" in message and "cannot be reached (no route to the hub): STS17, ArguAna." in message
    assert "evaluation=offline_small" in message and "benchmark.tasks" in message
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MissingResourceError, match="HF_HUB_OFFLINE forbids"):
        check_available(tasks, HERE)


def test_what_is_in_the_hubs_cache_needs_no_hub(no_hub: Path) -> None:
    _cache(no_hub, "stsbenchmark-sts")
    check_available(tasks_of("mteb_en_v1", "STSBenchmark"), HERE)


def test_a_hub_that_answers_will_do(no_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, path, timeout: None)
    check_available(tasks_of("smoke"), HERE)


def test_local_data_is_read_at_once(no_hub: Path) -> None:
    tasks = tasks_of("offline_small", "WordNetGlosses.small")
    check_available(tasks, HERE)
    assert tasks[0].data_loaded
    assert suites.suite_tasks(BenchmarkConfig(suite="offline_small"), HERE)[0].data_loaded is False


@pytest.mark.parametrize("suite", ["BRIGHT(v1.1)", "NanoBEIR", "RAR-b", "FollowIR"])
def test_any_benchmark_of_mteb_is_found_by_name_and_says_at_once_that_its_data_is_not_here(
    suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    tasks = suite_tasks(BenchmarkConfig(suite=suite), tmp_path)
    assert tasks and all("eng" in task.metadata.languages for task in tasks)
    with pytest.raises(MissingResourceError, match=r"HF_HUB_OFFLINE forbids to ask"):
        check_available(tasks, tmp_path)


def test_single_tasks_and_misspelt_names(tmp_path: Path) -> None:
    (task,) = suite_tasks(BenchmarkConfig(suite=None, tasks=["STS17"]), tmp_path)
    assert task.hf_subsets and all("en" in subset for subset in task.hf_subsets)
    with pytest.raises(ConfigError, match=r"'NanoBIER' is not a benchmark; similar names: .*NanoBEIR"):
        suite_tasks(BenchmarkConfig(suite="NanoBIER"), tmp_path)
    with pytest.raises(ConfigError, match=r"no task 'STS71'; similar names: .*STS17"):
        suite_tasks(BenchmarkConfig(suite=None, tasks=["STS71"]), tmp_path)
    with pytest.raises(ValueError, match=r"name a benchmark"):
        BenchmarkConfig(suite=None)
