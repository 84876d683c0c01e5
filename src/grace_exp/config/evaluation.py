"""What is measured: held-out sets before and after training, benchmarks by a job of their own."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from grace_exp.config.base import STRICT


@dataclass(config=STRICT, frozen=True, kw_only=True)
class EvaluationSetConfig:
    """One held-out set."""

    kind: Literal["sts", "retrieval"]
    """sts: Spearman of cosine and human score; retrieval: nDCG@10 of an example's gloss among all glosses."""
    source: Literal["stsb", "wordnet"]
    """STS Benchmark, or WordNet's glosses and examples."""
    split: Literal["dev", "test"] = "dev"
    """Of the source."""
    size: Annotated[int, Field(ge=2)] | None = None
    """Pairs drawn with a fixed seed of its own; null takes all."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class BenchmarkConfig:
    """MTEB tasks, run by job=evaluate (training leaves them alone); job.encode says how texts are embedded."""

    suite: Annotated[str, Field(min_length=1)] | None
    """mteb_en_v1: MTEB English, 56 tasks, the paper's benchmark; mteb_en_v2: its successor, 41 tasks; paper_16: the
    tasks of the paper's ablations; smoke: one small task a category; offline, offline_study and offline_small: data
    that needs no hub.
    Any other name is that of a benchmark of MTEB's, such as "BRIGHT(v1.1)" or NanoBEIR: its English parts. null: the
    tasks that `tasks` names.
    """
    tasks: Annotated[list[str], Field(min_length=1)] | None = None
    """Only these of the suite's; null: all. Without a suite: any tasks of MTEB's, by name."""
    prompts: dict[str, str] = Field(default_factory=dict)
    """Instructions by side (query, document), category (STS), both (Retrieval-query), task, or task and side
    (ArguAna-query); the most specific counts.
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
        """Of tables and files; other characters than letters, digits, dots, brackets and dashes become _."""
        return re.sub(r"[^\w.()-]+", "_", self.suite or "tasks")


PAPER_TASKS = ("gsm8k", "mmlu", "triviaqa", "bbh", "humaneval")
"""The paper's benchmarks of general ability that lm-eval has (it has no FEVER), by lm-eval's names."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class GeneralConfig:
    """What else the base model and, with job.resume, the trained one can do; run by job=evaluate alone."""

    tasks: list[str] = Field(default_factory=list)
    """lm-eval's tasks, groups or tags, or .yaml files of tasks of your own; their data is on the hub."""
    fewshot: dict[str, Annotated[int, Field(ge=0)]] = Field(default_factory=dict)
    """Solved examples in the prompt, by entry of `tasks`; without one, as lm-eval has it."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Only the first examples of each task (of a group: of each of its tasks), for smoke runs; null: all."""
    run_untrusted_code: bool = False
    """Run what the model wrote, on this machine, as humaneval needs; false leaves such tasks out."""
    apply_chat_template: bool = False
    """Put questions as chat turns; lm-eval's published figures mostly do not."""
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Examples given to the model at a time."""
    probe_texts: Annotated[int, Field(ge=1)] | None = None
    """Perplexity of both models, and the divergence between them, on this many texts of each held-out set (WordNet
    glosses, STS-B dev sentences); needs no hub. null: none.
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
    """Greedy rationales on held-out sets, before the first step and after the last."""

    name: Annotated[str, Field(min_length=1)]
    """Name of the choice."""
    sets: dict[str, EvaluationSetConfig] = Field(default_factory=dict)
    """Held-out sets, by the name that figures have: val/<name>/..."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Rationale budget; null: as in training. In benchmarks job.encode.max_tokens comes first."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """Of held-out sets (in benchmarks: job.encode.temperature). 0 is greedy; above it, sampling is seeded."""
    before: bool = True
    """Evaluate before the first step."""
    after: bool = True
    """Evaluate after the last step."""
    every_n_steps: Annotated[int, Field(ge=1)] | None = None
    """Also during training, after every n steps; null: never."""
    bootstrap: Annotated[int, Field(ge=0)] = 1000
    """Resamples for the 95 % intervals; 0: no intervals."""
    minilm: bool = False
    """Score all-MiniLM-L6-v2 on the same sets, for scale."""
    controls: bool = False
    """In job=evaluate, measure the held-out sets also in other modes and with control rationales (docs/controls.md)."""
    benchmark: BenchmarkConfig | None = None
    """MTEB tasks for job=evaluate; null: none."""
    general: GeneralConfig | None = None
    """General ability for job=evaluate; null: none."""
