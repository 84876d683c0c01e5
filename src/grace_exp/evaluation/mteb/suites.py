"""Named sets of tasks."""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mteb
from mteb.abstasks.abstask import AbsTask
from mteb.abstasks.aggregated_task import AbsTaskAggregate

from grace_exp.config.evaluation import BenchmarkConfig
from grace_exp.errors import ConfigError, MissingResourceError
from grace_exp.evaluation.hub_access import hub_problem, is_cached

BENCHMARKS = {"mteb_en_v1": "MTEB(eng, v1)", "mteb_en_v2": "MTEB(eng, v2)"}
"""Suites of MTEB, under MTEB's names."""
OFFLINE_SUITES = ("offline", "offline_study", "offline_small")
"""Suites whose data needs no hub."""
PAPER_16 = (
    "SciFact",
    "ArguAna",
    "NFCorpus",
    "StackOverflowDupQuestions",
    "SciDocsRR",
    "BiorxivClusteringS2S",
    "MedrxivClusteringS2S",
    "TwentyNewsgroupsClustering",
    "SprintDuplicateQuestions",
    "Banking77Classification",
    "EmotionClassification",
    "MassiveIntentClassification",
    "STS17",
    "SICK-R",
    "STSBenchmark",
    "SummEval",
)
"""The tasks of the paper's ablations (arXiv 2510.04506)."""
SMOKE = (
    "SciFact",
    "SciDocsRR",
    "TwentyNewsgroupsClustering",
    "TwitterSemEval2015",
    "Banking77Classification",
    "STSBenchmark",
    "SummEval",
)
"""One task of each category."""


def suite_tasks(config: BenchmarkConfig, cache_dir: Path) -> list[AbsTask]:
    """Return the tasks of a suite, with English subsets only, on the splits of the benchmark.

    Args:
        config: The suite, and perhaps some of its tasks.
        cache_dir: Folder for data from package registries.

    Raises:
        ConfigError: The suite does not have a named task.
    """
    if config.suite is None:
        return _tasks_by_name(config.tasks or [])
    tasks = {task.metadata.name: task for task in _all_tasks(config.suite, cache_dir)}
    if config.tasks is None:
        return list(tasks.values())
    unknown = [name for name in config.tasks if name not in tasks]
    if unknown:
        raise ConfigError(
            f"evaluation.benchmark.tasks: suite {config.suite} has no {', '.join(unknown)}; it has {', '.join(tasks)}"
        )
    return [tasks[name] for name in config.tasks]


def _all_tasks(suite: str, cache_dir: Path) -> Sequence[AbsTask]:
    match suite:
        case "mteb_en_v1" | "mteb_en_v2":
            return list(mteb.get_benchmark(BENCHMARKS[suite]).tasks)
        case "paper_16" | "smoke":
            # Taken from the benchmark, which has chosen the English subsets and the splits.
            english = {task.metadata.name: task for task in mteb.get_benchmark(BENCHMARKS["mteb_en_v1"]).tasks}
            return [english[name] for name in (PAPER_16 if suite == "paper_16" else SMOKE)]
    if suite not in OFFLINE_SUITES:
        return _english(_benchmark(suite).tasks)
    from grace_exp.evaluation.mteb.tasks.lee import LeePairs
    from grace_exp.evaluation.mteb.tasks.sts_benchmark import StsbDev, StsbTest, StsbTestSmall, StsbTestStudy
    from grace_exp.evaluation.mteb.tasks.vader import VaderMovies, VaderMoviesSmall, VaderMoviesStudy
    from grace_exp.evaluation.mteb.tasks.wordnet_classes import WordNetClasses, WordNetClassesSmall, WordNetClassesStudy
    from grace_exp.evaluation.mteb.tasks.wordnet_glosses import WordNetGlosses, WordNetGlossesSmall, WordNetGlossesStudy
    from grace_exp.evaluation.mteb.tasks.wordnet_senses import WordNetSenses, WordNetSensesSmall, WordNetSensesStudy

    if suite == "offline":
        return [
            WordNetGlosses(),
            WordNetClasses(),
            WordNetSenses(),
            VaderMovies(cache_dir),
            StsbTest(),
            StsbDev(),
            LeePairs(cache_dir),
        ]
    if suite == "offline_study":
        return [
            WordNetGlossesStudy(),
            WordNetSensesStudy(),
            WordNetClassesStudy(),
            VaderMoviesStudy(cache_dir),
            StsbTestStudy(),
        ]
    return [
        WordNetGlossesSmall(),
        WordNetClassesSmall(),
        WordNetSensesSmall(),
        VaderMoviesSmall(cache_dir),
        StsbTestSmall(),
    ]


OWN_SUITES = (*BENCHMARKS, "paper_16", "smoke", *OFFLINE_SUITES)


def _benchmark(name: str) -> Any:
    """Return an MTEB benchmark.

    Raises:
        ConfigError: There is no benchmark of that name.
    """
    known = [benchmark.name for benchmark in mteb.get_benchmarks()]
    aliases = [alias for benchmark in mteb.get_benchmarks() for alias in benchmark.aliases]
    if name not in (*known, *aliases):
        near = difflib.get_close_matches(name, [*OWN_SUITES, *known], n=5, cutoff=0.4)
        raise ConfigError(
            f"evaluation.benchmark.suite={name!r} is not a benchmark; similar names: {', '.join(near) or 'none'}. Ours "
            f"are {', '.join(OWN_SUITES)}; MTEB's: {', '.join(known)}"
        )
    return mteb.get_benchmark(name)


def _tasks_by_name(names: Sequence[str]) -> list[AbsTask]:
    """Return MTEB tasks by name, with English subsets.

    Raises:
        ConfigError: There is no task of a name.
    """
    from mteb.get_tasks import _TASKS_REGISTRY as registry

    for name in names:
        if name not in registry:
            near = difflib.get_close_matches(name, registry, n=5, cutoff=0.4)
            raise ConfigError(
                f"evaluation.benchmark.tasks: MTEB has no task {name!r}; similar names: {', '.join(near)}"
            )
    return _english(mteb.get_task(name) for name in names)


def _english(tasks: Iterable[AbsTask]) -> list[AbsTask]:
    """Return the tasks that have English subsets, with only these."""
    return [task.filter_languages(["eng"]) for task in tasks if "eng" in task.metadata.languages]


def single_tasks(tasks: Iterable[AbsTask]) -> Iterator[AbsTask]:
    """Yield every task itself; for an aggregate (CQADupstack) its parts."""
    for task in tasks:
        if isinstance(task, AbsTaskAggregate):
            yield from single_tasks(task.metadata.tasks)
        else:
            yield task


def check_available(tasks: Iterable[AbsTask], cache_dir: Path) -> None:
    """Check that every task's data can be read, before a model is loaded.

    Local data is downloaded here the first time. Data of the hub that is not in the cache on this machine needs the
    hub.

    Raises:
        MissingResourceError: Data is missing; the message names the tasks and what to do.
    """
    missing = []
    for task in single_tasks(tasks):
        if type(task).__module__.startswith("grace_exp."):
            task.load_data()
        elif not is_cached(task.metadata.dataset["path"]):
            missing.append(task.metadata.name)
    if missing and (problem := hub_problem("mteb/stsbenchmark-sts")) is not None:
        raise MissingResourceError(
            f"the data of {len(missing)} task(s) lies on the Hugging Face hub, {problem}: {', '.join(missing)}.\n"
            "Run this once on a machine with access and bring its hub cache (HF_HOME, ~/.cache/huggingface), choose "
            "tasks whose data is here (evaluation.benchmark.tasks=[...]), or evaluate on data that needs no hub: "
            "evaluation=offline_small or evaluation=offline"
        )
