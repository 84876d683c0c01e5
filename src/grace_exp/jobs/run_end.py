"""The end of a training run in named stages; each is done once, so that a run that was killed there can be finished."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from grace_exp.config.callbacks import Export
from grace_exp.config.root import GraceConfig
from grace_exp.encoder.pretrained import exports_in
from grace_exp.evaluation.scores import ItemScores
from grace_exp.policy.load_backbone import Backbone
from grace_exp.tracking.result import RESULT_FILE, write_result
from grace_exp.tracking.summary import write_json_atomic
from grace_exp.training.callbacks.heldout_evaluation import HeldoutEvaluation, result_path, results_are_whole
from grace_exp.training.export import FOLDER as EXPORTS
from grace_exp.training.export import export, export_folder
from grace_exp.training.module import StepModule
from grace_exp.training.run_summary import SUMMARY_FILE, final_figures, write_summary

END_FILE = "end.json"
"""File in the run folder: which stages are done, and for which settings."""


@dataclass(frozen=True)
class Trained:
    """The inputs of the stages.

    Attributes:
        config: The settings of the run.
        backbone: The trained model. Exporting `merged` merges its adapters.
        module: The training module, with the metrics of every step.
        heldout: The callback with the held-out results.
        data: The description of the recipe.
    """

    config: GraceConfig
    backbone: Backbone
    module: StepModule
    heldout: HeldoutEvaluation
    data: dict[str, Any]

    @property
    def run_dir(self) -> Path:
        """The run folder."""
        return Path(self.config.run_dir)

    def summary(self) -> dict[str, Any]:
        """Return what the stage `summary` wrote."""
        return read_summary(self.run_dir)


@dataclass(frozen=True)
class Stage:
    """One task after the last step.

    Attributes:
        name: Name of the stage in `end.json`.
        leaves: The file or folder that it writes, completely or not at all.
        run: Runs the stage; a second run gives the same.
    """

    name: str
    leaves: Path
    run: Callable[[Trained], object]


def stages(config: GraceConfig) -> list[Stage]:
    """Return the stages of this run after its last step and evaluation, in order; a new task is a new entry."""
    run_dir = Path(config.run_dir)
    found = []
    if config.evaluation.minilm and config.evaluation.sets:
        found.append(Stage("minilm", _minilm_path(run_dir), _evaluate_minilm))
    found.append(Stage("summary", run_dir / SUMMARY_FILE, _summarise))
    for kind in sorted(config.callbacks.export):  # the adapter comes first, because merging removes it
        found.append(Stage(f"{EXPORTS}/{kind}", export_folder(config, kind), _exporting(kind)))
    found.append(Stage("result", run_dir / RESULT_FILE, _write_result))  # the last stage marks the job as complete
    return found


def is_ended(config: GraceConfig) -> bool:
    """Whether all stages of a run of `job.steps` steps in `run_dir` are done."""
    done = _done(config)
    evaluated = not config.evaluation.after or results_are_whole(config, "after")
    return evaluated and all(_whole(stage, done) for stage in stages(config))


def finish(trained: Trained) -> None:
    """Run the stages that are not done; if the file of a stage is gone, that stage and all later ones run again."""
    done = _done(trained.config)
    for stage in stages(trained.config):
        if _whole(stage, done):
            continue
        stage.run(trained)
        done = [*done, stage.name] if stage.name not in done else done[: done.index(stage.name) + 1]
        write_json_atomic(trained.run_dir / END_FILE, {"of": _of(trained.config), "done": done})


def reopen(run_dir: Path) -> None:
    """Delete the results of an earlier end before more steps are made. Exports stay until new ones replace them."""
    for path in (run_dir / END_FILE, run_dir / RESULT_FILE, run_dir / SUMMARY_FILE, result_path(run_dir, "after")):
        path.unlink(missing_ok=True)


def exports_after(run_dir: Path, steps: int) -> list[Path]:
    """Return the exports in a run folder that were made from the weights after so many steps.

    A run that continues keeps the exports of its earlier end until it ends again; they have other weights.
    """
    path = run_dir / END_FILE
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"of": {}, "done": []}
    if record["of"].get("steps") != steps:
        return []
    return [folder for folder in exports_in(run_dir) if f"{EXPORTS}/{folder.name}" in record["done"]]


def read_summary(run_dir: Path) -> dict[str, Any]:
    """Return the contents of `summary.json`."""
    summary: dict[str, Any] = json.loads((run_dir / SUMMARY_FILE).read_text(encoding="utf-8"))
    return summary


def _done(config: GraceConfig) -> list[str]:
    path = Path(config.run_dir) / END_FILE
    if not path.is_file():
        return []
    record = json.loads(path.read_text(encoding="utf-8"))
    return list(record["done"]) if record["of"] == _of(config) else []


def _of(config: GraceConfig) -> dict[str, Any]:
    """Return the settings on which the end of a run depends, besides those that a resumed run must not change."""
    of = {"steps": config.job.steps, "name": config.name, "evaluation": asdict(config.evaluation)}
    plain: dict[str, Any] = json.loads(json.dumps(of))  # as it is read back, without tuples
    return plain


def _whole(stage: Stage, done: list[str]) -> bool:
    return stage.name in done and stage.leaves.exists()


def _minilm_path(run_dir: Path) -> Path:
    return run_dir / "evaluation" / "minilm.json"


def _evaluate_minilm(trained: Trained) -> None:
    items = trained.heldout.minilm()
    write_json_atomic(_minilm_path(trained.run_dir), {name: scores.as_dict() for name, scores in items.items()})


def _summarise(trained: Trained) -> None:
    minilm = {}
    if trained.config.evaluation.minilm and trained.config.evaluation.sets:
        record = json.loads(_minilm_path(trained.run_dir).read_text(encoding="utf-8"))
        minilm = {name: ItemScores.from_dict(scores) for name, scores in record.items()}
    write_summary(trained.config, trained.module, trained.heldout.results, minilm, trained.data)


def _write_result(trained: Trained) -> None:
    write_result(trained.run_dir, final_figures(trained.module, trained.heldout.results))


def _exporting(kind: Export) -> Callable[[Trained], object]:
    return lambda trained: export(trained.backbone, trained.config, kind, trained.summary())
