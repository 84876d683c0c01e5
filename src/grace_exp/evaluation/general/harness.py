"""Benchmarks of general ability through EleutherAI's lm-evaluation-harness (package lm-eval)."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from grace_exp.config.evaluation import PAPER_TASKS, GeneralConfig
from grace_exp.errors import ConfigError, MissingResourceError
from grace_exp.evaluation.general.compared_model import ComparedModel
from grace_exp.evaluation.general.general_results import TaskFigure
from grace_exp.evaluation.hub_access import hub_problem, is_cached

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LOCAL_READERS = frozenset({"arrow", "csv", "json", "parquet", "text"})
"""Formats of the datasets library whose data is in files, not on the hub."""
_FEWSHOT_SEED = 1234
"""The harness's default."""


@dataclass(frozen=True)
class PreparedTasks:
    """Tasks with their data.

    Attributes:
        loaded: The harness's task objects, by the task's name.
        skipped: Why a task is left out, by its name.
    """

    loaded: dict[str, Any]
    skipped: dict[str, str]


def prepare_tasks(config: GeneralConfig) -> PreparedTasks:
    """Find the tasks and load their data, before any model is loaded.

    Raises:
        ConfigError: The harness has no such task.
        MissingResourceError: Data is neither on this machine nor reachable.
    """
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=_needs_whole_index(config), include_path=_folders(config))
    chosen = [_find(spec, manager) for spec in config.tasks]
    skipped, wanted = {}, {}
    for spec, name in zip(config.tasks, chosen, strict=True):
        leaves = list(_leaves(name, manager.task_index))
        if any(leaf.get("unsafe_code") for leaf in leaves) and not config.run_untrusted_code:
            skipped[name] = "runs code that the model wrote: evaluation.general.run_untrusted_code=true"
        else:
            wanted[name] = (spec, {str(leaf["dataset_path"]) for leaf in leaves if leaf.get("dataset_path")})
    _check_available({name: paths for name, (_, paths) in wanted.items()})
    with _code_allowed(config), _quiet():
        loaded = {name: _load(name, manager, config.fewshot.get(spec)) for name, (spec, _) in wanted.items()}
    return PreparedTasks(loaded, skipped)


def run_tasks(
    tasks: PreparedTasks,
    compared: ComparedModel,
    tokenizer: "PreTrainedTokenizerBase",
    config: GeneralConfig,
    *,
    bf16: bool,
    template_kwargs: Mapping[str, Any],
) -> list[TaskFigure]:
    """Evaluate one model in memory; the processes of a group share the examples.

    Args:
        tasks: From `prepare_tasks`.
        compared: The model.
        tokenizer: Its tokenizer.
        config: Limit, batch size, chat template.
        bf16: Compute in bfloat16 where autocast allows it.
        template_kwargs: Variables of the chat template.

    Returns:
        A score for each task (for a tag, one for each of its tasks); on other processes than the first: none.
    """
    from lm_eval.evaluator import evaluate

    figures = []
    with compared.active(), _code_allowed(config), _quiet():
        lm = _harness_model(compared, tokenizer, config, bf16, template_kwargs)
        for name, loaded in tasks.loaded.items():
            results = evaluate(
                lm=lm,
                task_dict=loaded,
                limit=config.limit,
                log_samples=False,
                bootstrap_iters=100,  # for metrics whose error has no closed form; 100,000 would take minutes
                apply_chat_template=config.apply_chat_template,
                fewshot_as_multiturn=config.apply_chat_template,
                confirm_run_unsafe_code=config.run_untrusted_code,
            )
            if results is not None:
                figures += _figures(name, results)
    return figures


def _needs_whole_index(config: GeneralConfig) -> bool:
    """Whether a task must be searched for in the harness's thousands of files, which takes about ten seconds."""
    return any(not _is_file(task) and task not in PAPER_TASKS for task in config.tasks)


def _folders(config: GeneralConfig) -> list[str | Path]:
    import lm_eval.tasks

    harness = Path(lm_eval.tasks.__file__).parent
    files = [Path(task).expanduser().resolve().parent for task in config.tasks if _is_file(task)]
    if _needs_whole_index(config):
        return [*files]
    return [*files, *(harness / task for task in config.tasks if task in PAPER_TASKS)]


def _is_file(task: str) -> bool:
    return task.endswith(".yaml")


def _find(spec: str, manager: Any) -> str:
    """Return the harness's name of a task, group or tag, or of the task that a YAML file describes."""
    if not _is_file(spec):
        if spec in manager.task_index:
            return spec
        raise ConfigError(
            f"evaluation.general.tasks: lm-eval has no task, group or tag {spec!r}; `lm-eval ls tasks` lists them. "
            "Give your own task as the path of its .yaml file"
        )
    path = Path(spec).expanduser().resolve()
    for name, entry in manager.task_index.items():
        if entry.yaml_path is not None and entry.yaml_path.resolve() == path:
            return str(name)
    raise ConfigError(f"evaluation.general.tasks: {spec} is not a file that describes a task of lm-eval")


def _leaves(item: Any, index: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the settings of the single tasks of a task, group or tag, given by name or as settings within a group."""
    name = item if isinstance(item, str) else item.get("group", item.get("task"))
    entry = index.get(name) if isinstance(name, str) else None
    if entry is not None and entry.kind.name == "TAG":
        members: Any = sorted(entry.tags)
    else:
        settings = entry.cfg if entry is not None else item
        members = settings.get("task")
        if not isinstance(members, list):
            yield settings
            return
    for member in members:
        yield from _leaves(member, index)


def _check_available(data: Mapping[str, set[str]]) -> None:
    """Ask the hub once if some of its data is not in the cache on this machine.

    Raises:
        MissingResourceError: The hub does not answer.
    """
    missing = {
        name: sorted(path for path in paths if not (path in _LOCAL_READERS or Path(path).exists() or is_cached(path)))
        for name, paths in data.items()
    }
    missing = {name: paths for name, paths in missing.items() if paths}
    if missing and (problem := hub_problem(next(iter(missing.values()))[0])) is not None:
        listed = ", ".join(f"{name} ({', '.join(paths)})" for name, paths in missing.items())
        raise MissingResourceError(
            f"the data of {len(missing)} task(s) lies on the Hugging Face hub, {problem}: {listed}.\n"
            "Run this once on a machine with access and bring its hub cache (HF_HOME, ~/.cache/huggingface), choose "
            "tasks whose data is here (evaluation.general.tasks=[...]), or take the probe that needs no hub: "
            "evaluation=general_offline"
        )


def _load(name: str, manager: Any, shots: int | None) -> Any:
    try:
        loaded = manager.load([name])
    except Exception as error:  # each layer of datasets (network, hub, file format) raises its own errors
        raise MissingResourceError(
            f"evaluation.general.tasks: the data of {name} could not be loaded: {type(error).__name__}: {error}"
        ) from error
    for task in loaded["tasks"].values():
        if shots is not None or task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=shots or 0)
        task.set_fewshot_seed(seed=_FEWSHOT_SEED)
    return loaded


def _harness_model(
    compared: ComparedModel,
    tokenizer: "PreTrainedTokenizerBase",
    config: GeneralConfig,
    bf16: bool,
    template_kwargs: Mapping[str, Any],
) -> Any:
    from lm_eval.models.huggingface import HFLM

    class Shared(HFLM):  # type: ignore[misc, unused-ignore]
        """The harness's model over the existing process group; by default it would start another one."""

        def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
            if self.world_size == 1:
                return tensor
            parts = [torch.empty_like(tensor.reshape(-1)) for _ in range(self.world_size)]
            dist.all_gather(parts, tensor.reshape(-1))
            return torch.cat(parts)

        def barrier(self) -> None:
            if self.world_size > 1:
                dist.barrier()

    model = Shared(
        pretrained=compared.model,
        tokenizer=tokenizer,
        batch_size=config.batch_size,
        mixed_precision_dtype=torch.bfloat16 if bf16 else None,
        chat_template_args=dict(template_kwargs),
    )
    if dist.is_initialized():
        model._rank, model._world_size = dist.get_rank(), dist.get_world_size()
    return model


@contextmanager
def _code_allowed(config: GeneralConfig) -> Iterator[None]:
    """Set the environment variable with which the `evaluate` library asks for consent, if the settings allow it."""
    if not config.run_untrusted_code:
        yield
        return
    before = os.environ.get("HF_ALLOW_CODE_EVAL")
    os.environ["HF_ALLOW_CODE_EVAL"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HF_ALLOW_CODE_EVAL"]
        else:
            os.environ["HF_ALLOW_CODE_EVAL"] = before


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings about settings that tasks leave open, and about passing a model object; errors stay."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _figures(name: str, results: Mapping[str, Any]) -> list[TaskFigure]:
    """Return the score of a task or group; for a tag, or a group without an aggregate, the scores of its tasks."""
    rows = results["results"]
    names = [name] if _metrics(rows.get(name, {})) else [row for row in rows if _metrics(rows[row])]
    sizes = results["n-samples"]
    figures = []
    for row in names:
        metrics = _metrics(rows[row])
        main, value = next(iter(metrics.items()))  # the first of the task's settings
        metric, _, how = main.partition(",")
        error = rows[row].get(f"{metric}_stderr,{how}")
        row_sizes = [row] if row in sizes else list(sizes)
        figures.append(
            TaskFigure(
                task=row,
                metric=metric if how == "none" else f"{metric} ({how})",
                value=value,
                stderr=float(error) if isinstance(error, int | float) else None,
                shots=int(results["n-shot"].get(row, 0)),
                examples=sum(int(sizes[task]["effective"]) for task in row_sizes),
                metrics=metrics,
            )
        )
    return figures


def _metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the measured values by `<metric>,<filter>`, without the errors."""
    return {
        key: float(value)
        for key, value in row.items()
        if "," in key and not key.partition(",")[0].endswith("_stderr") and isinstance(value, int | float)
    }
