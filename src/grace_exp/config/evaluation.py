"""What is measured: held-out sets before and after training, and benchmarks in a separate job."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from grace_exp.config.base import STRICT


@dataclass(config=STRICT, frozen=True, kw_only=True)
class EvaluationSetConfig:
    """One held-out set."""

    kind: Literal["sts", "retrieval"]
    """sts: Spearman correlation of cosine and human score; retrieval: nDCG@10 of an example's gloss among all
    glosses."""
    source: Literal["stsb", "wordnet"]
    """STS Benchmark, or WordNet's glosses and examples."""
    split: Literal["dev", "test"] = "dev"
    """Split of the data."""
    size: Annotated[int, Field(ge=2)] | None = None
    """Number of pairs, drawn with a fixed seed; null: all."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class BenchmarkConfig:
    """MTEB tasks for job=evaluate (training does not run them); job.encode says how texts are embedded."""

    suite: Annotated[str, Field(min_length=1)] | None
    """mteb_en_v1: MTEB English, 56 tasks, the paper's benchmark; mteb_en_v2: its successor, 41 tasks; paper_16: the
    tasks of the paper's ablations; smoke: one small task a category; offline, offline_study and offline_small: data
    that needs no hub.
    Any other name is that of an MTEB benchmark, such as "BRIGHT(v1.1)" or NanoBEIR; its English parts are run. null:
    the tasks that `tasks` names.
    """
    tasks: Annotated[list[str], Field(min_length=1)] | None = None
    """Run only these tasks of the suite; null: all. Without a suite: any MTEB tasks, by name."""
    prompts: dict[str, str] = Field(default_factory=dict)
    """Instructions by side (query, document), category (STS), both (Retrieval-query), task, or task and side
    (ArguAna-query); the most specific one is used.
    """

    @model_validator(mode="after")
    def _names_tasks(self) -> Self:
        if self.suite is None and self.tasks is None:
            raise ValueError(
                "suite=null and tasks=null: name a benchmark, as evaluation.benchmark.suite=NanoBEIR, or tasks, as "
                "evaluation.benchmark.tasks=[STS17]"
            )
        return self

    @property
    def title(self) -> str:
        """Title of tables and files; characters other than letters, digits, dots, brackets and dashes become _."""
        return re.sub(r"[^\w.()-]+", "_", self.suite or "tasks")


PAPER_TASKS = ("gsm8k", "mmlu", "triviaqa", "bbh", "humaneval")
"""The paper's benchmarks of general ability that lm-eval has (it has no FEVER), by lm-eval's names."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class GeneralConfig:
    """General ability of the base model and, with job.resume, of the trained one; measured by job=evaluate only."""

    tasks: list[str] = Field(default_factory=list)
    """lm-eval's tasks, groups or tags, or .yaml files of your own tasks; their data is on the hub."""
    fewshot: dict[str, Annotated[int, Field(ge=0)]] = Field(default_factory=dict)
    """Number of solved examples in the prompt, by entry of `tasks`; for other entries, lm-eval's default."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Run only the first examples of each task (of a group: of each of its tasks), for smoke runs; null: all."""
    run_untrusted_code: bool = False
    """Run code that the model writes on this machine, as humaneval needs; false leaves such tasks out."""
    apply_chat_template: bool = False
    """Ask questions as chat turns; most of lm-eval's published figures do not."""
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Examples that the model processes at a time."""
    probe_texts: Annotated[int, Field(ge=1)] | None = None
    """Number of texts of each held-out set (WordNet glosses, STS-B dev sentences) on which the perplexity of both
    models and the divergence between them are measured; needs no hub. null: not measured.
    """

    @model_validator(mode="after")
    def _measures_something(self) -> Self:
        if not self.tasks and self.probe_texts is None:
            raise ValueError("evaluation.general has neither tasks nor probe_texts: set one of them")
        unknown = [task for task in self.fewshot if task not in (*self.tasks, *PAPER_TASKS)]
        if unknown:
            raise ValueError(
                f"evaluation.general.fewshot names {', '.join(unknown)}, which evaluation.general.tasks has not: "
                f"{', '.join(self.tasks)}"
            )
        return self


@dataclass(config=STRICT, frozen=True, kw_only=True)
class EvaluationConfig:
    """Greedy rationales on held-out sets, before the first step and after the last one."""

    name: Annotated[str, Field(min_length=1)]
    """Name of this choice of `evaluation=`."""
    sets: dict[str, EvaluationSetConfig] = Field(default_factory=dict)
    """Held-out sets, by the name that their metrics use: val/<name>/..."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Token limit of a rationale; null: as in training. In benchmarks job.encode.max_tokens takes precedence."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """Sampling temperature on held-out sets (in benchmarks: job.encode.temperature). 0 is greedy; above it, sampling is
    seeded."""
    before: bool = True
    """Evaluate before the first step."""
    after: bool = True
    """Evaluate after the last step."""
    every_n_steps: Annotated[int, Field(ge=1)] | None = None
    """Evaluate also during training, after every n steps; null: never."""
    bootstrap: Annotated[int, Field(ge=0)] = 1000
    """Number of bootstrap resamples for the 95 % intervals; 0: no intervals."""
    minilm: bool = False
    """Also score all-MiniLM-L6-v2 on the same sets, for comparison."""
    controls: bool = False
    """In job=evaluate, also measure the held-out sets in other modes and with control rationales (docs/controls.md)."""
    benchmark: BenchmarkConfig | None = None
    """MTEB tasks for job=evaluate; null: none."""
    general: GeneralConfig | None = None
    """General ability for job=evaluate; null: none."""
