"""Measure held-out sets before the first step, during training and after the last step."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer

from grace_exp.config.root import GraceConfig
from grace_exp.data.batch import Role
from grace_exp.encoder.embedding import Embedded, embed_texts
from grace_exp.encoder.modes import writes
from grace_exp.evaluation.heldout import PROMPT_ONLY, Example, SetResult, evaluate_minilm, evaluate_sets
from grace_exp.evaluation.scores import ItemScores, score
from grace_exp.tracking.summary import write_json_atomic
from grace_exp.training.module import StepModule, step_module

Moment = Literal["before", "after"]


class HeldoutEvaluation(Callback):
    """Runs `evaluate_sets` and stores the results in `<run_dir>/evaluation/`; during training it only logs metrics.

    Every process embeds its share of the texts. A resumed run reads the results from before its first step, and those
    from after its last one if they exist (`jobs.run_end` removes those of fewer steps). It must come before
    `StepCheckpoints` in the list of callbacks, because that one may watch its metrics.
    """

    def __init__(self, config: GraceConfig, decode: Callable[..., str], announce: Callable[[str], None]) -> None:
        """Prepare the evaluation.

        Args:
            config: The settings of the run.
            decode: Token ids to text.
            announce: Called with progress messages for the terminal.
        """
        self._config = config
        self._decode = decode
        self._announce = announce
        self.results: dict[Moment, dict[str, SetResult]] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate before the first step."""
        if self._config.evaluation.before:
            self._run("before", trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Evaluate after every n steps; after the last step this is the evaluation after training."""
        module, every = step_module(pl_module), self._config.evaluation.every_n_steps
        if every is None or module.completed_steps % every:
            return
        if module.completed_steps == self._config.job.steps and self._config.evaluation.after:
            self._run("after", trainer, pl_module)
            figures = self._metrics(self.results["after"])
        else:
            with module.timer("evaluation_during"), trainer.precision_plugin.forward_context():
                figures = self._metrics(heldout_results(self._config, module, self._decode))
            self._log(trainer, module, figures)
        module.history[-1] |= figures

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate after the last step, but not after an interruption."""
        module = step_module(pl_module)
        if (
            self._config.evaluation.after
            and module.completed_steps == self._config.job.steps
            and "after" not in self.results
        ):
            self._run("after", trainer, pl_module)

    def minilm(self) -> dict[str, ItemScores]:
        """Return the item scores of all-MiniLM on the configured sets; empty if not asked for."""
        if not (self._config.evaluation.minilm and self._config.evaluation.sets):
            return {}
        self._announce("evaluating all-MiniLM-L6-v2 on the same sets")
        return evaluate_minilm(self._config.evaluation)

    def _run(self, moment: Moment, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._config.evaluation.sets:
            return
        path = result_path(Path(self._config.run_dir), moment)
        module = step_module(pl_module)
        # With other settings the results from before could not be compared with those after.
        kept = bool(module.completed_steps) and results_are_whole(self._config, moment)
        if kept:
            self.results[moment] = read_results(path)
        if moment == "before" and module.completed_steps:
            return
        if not kept:
            self._announce(f"evaluating {moment} training: {', '.join(self._config.evaluation.sets)}")
            with module.timer(f"evaluation_{moment}"), trainer.precision_plugin.forward_context():
                self.results[moment] = heldout_results(self._config, module, self._decode)
            if trainer.is_global_zero:
                write_results(path, self.results[moment], self._config)
        self._log(trainer, module, self._metrics(self.results[moment]))

    def _log(self, trainer: Trainer, module: StepModule, figures: dict[str, float]) -> None:
        """Log in the row of the step that the weights come from; results from before training go into the first row."""
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.log_metrics(figures, step=max(0, module.completed_steps - 1))

    def _metrics(self, results: dict[str, SetResult]) -> dict[str, float]:
        return {
            f"val/{name}/{row}": score(items, 0).value
            for name, result in results.items()
            for row, items in (("rationale", result.rationale), ("prompt_only", result.prompt_only))
        }


def result_path(run_dir: Path, moment: Moment) -> Path:
    """Return the path of the results of a moment."""
    return run_dir / "evaluation" / f"{moment}.json"


def results_are_whole(config: GraceConfig, moment: Moment) -> bool:
    """Return whether the run folder has results of that moment with the present settings; true without sets."""
    path = result_path(Path(config.run_dir), moment)
    return not config.evaluation.sets or (path.is_file() and _settings_in(path) == _settings(config))


def stored_results(config: GraceConfig) -> dict[Moment, dict[str, SetResult]]:
    """Return the results that a run folder has with the present settings."""
    moments: tuple[Moment, ...] = ("before", "after")
    kept = [moment for moment in moments if config.evaluation.sets and results_are_whole(config, moment)]
    return {moment: read_results(result_path(Path(config.run_dir), moment)) for moment in kept}


def heldout_results(config: GraceConfig, module: StepModule, decode: Callable[..., str]) -> dict[str, SetResult]:
    """Score the configured sets with the module's present policy and engine."""
    region = config.backbone.pooling.region
    budget = config.evaluation.max_tokens or config.rollout.max_tokens

    def embed(texts: list[str], role: Role) -> Embedded:
        return embed_texts(
            texts,
            role,
            policy=module.policy,
            engine=module.engine,
            prompts=module.prompts,
            max_tokens=budget if writes(config.rollout.mode, role) else 0,
            temperature=config.evaluation.temperature,
            seed=config.seed,
            regions=tuple(dict.fromkeys((region, PROMPT_ONLY))),
        )

    one_sided = config.rollout.mode != "rationale"
    return evaluate_sets(config.evaluation, embed, decode, region, one_sided=one_sided)


def write_results(path: Path, results: dict[str, SetResult], config: GraceConfig) -> None:
    """Store results with every item's score, so that differences can be resampled later.

    Args:
        path: The file.
        results: The results by set.
        config: The settings; those that a set's results depend on, besides the weights, are stored with it.
    """
    settings = _settings(config)
    write_json_atomic(
        path,
        {
            name: {
                "rationale": result.rationale.as_dict(),
                "prompt_only": result.prompt_only.as_dict(),
                "rationale_tokens": result.rationale_tokens,
                "ms_per_text": result.ms_per_text,
                "machine": result.machine,
                "examples": [asdict(example) for example in result.examples],
                "settings": settings[name],
            }
            for name, result in results.items()
        },
    )


def _settings(config: GraceConfig) -> dict[str, Any]:
    """Return by set the settings that its results depend on and that a resumed run must not change."""
    evaluation = config.evaluation
    sampling = {"max_tokens": evaluation.max_tokens, "temperature": evaluation.temperature}
    return {name: asdict(chosen) | sampling for name, chosen in evaluation.sets.items()}


def _settings_in(path: Path) -> dict[str, Any]:
    return {name: record.get("settings") for name, record in json.loads(path.read_text(encoding="utf-8")).items()}


def read_results(path: Path) -> dict[str, SetResult]:
    """Read what `write_results` has written."""
    return {
        name: SetResult(
            ItemScores.from_dict(record["rationale"]),
            ItemScores.from_dict(record["prompt_only"]),
            [Example(**example) for example in record["examples"]],
            record["rationale_tokens"],
            record.get("ms_per_text"),  # results of earlier versions lack it
            record.get("machine"),
        )
        for name, record in json.loads(path.read_text(encoding="utf-8")).items()
    }
