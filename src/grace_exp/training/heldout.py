"""Held-out figures before the first step and after the last."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from grace_exp.config.root import GraceConfig
from grace_exp.data.batch import Role
from grace_exp.evaluation.embed import Embedded, embed_texts
from grace_exp.evaluation.heldout import PROMPT_ONLY, Example, SetResult, evaluate_minilm, evaluate_sets
from grace_exp.evaluation.scores import ItemScores, score
from grace_exp.tracking.summary import write_json_atomic
from grace_exp.training.grace import GraceModule, grace_module

Moment = Literal["before", "after"]


class HeldoutEvaluation(Callback):
    """Runs `evaluate_sets` around training and keeps the results in `<run_dir>/evaluation/`.

    Every process takes its share of the texts. A resumed run reads the figures from before its first step back.
    """

    def __init__(self, config: GraceConfig, decode: Callable[..., str], announce: Callable[[str], None]) -> None:
        """Prepare to evaluate.

        Args:
            config: The whole run.
            decode: Token ids to text.
            announce: Told what is going on, for the terminal.
        """
        self._config = config
        self._decode = decode
        self._announce = announce
        self.results: dict[Moment, dict[str, SetResult]] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate before the first step."""
        if self._config.evaluation.before:
            self._run("before", trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate after the last step, not after an interruption."""
        module = grace_module(pl_module)
        if self._config.evaluation.after and module.completed_steps == self._config.job.steps:
            self._run("after", trainer, pl_module)

    def minilm(self) -> dict[str, ItemScores]:
        """All-MiniLM's items on the configured sets; empty where not asked for."""
        if not (self._config.evaluation.minilm and self._config.evaluation.sets):
            return {}
        self._announce("evaluating all-MiniLM-L6-v2 on the same sets")
        return evaluate_minilm(self._config.evaluation)

    def _run(self, moment: Moment, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._config.evaluation.sets:
            return
        path = Path(self._config.run_dir) / "evaluation" / f"{moment}.json"
        module = grace_module(pl_module)
        if module.completed_steps and moment == "before":
            earlier = read_results(path) if path.is_file() else {}
            # Under other sets the figures from before would not be of the same items.
            if list(earlier) == list(self._config.evaluation.sets):
                self.results[moment] = earlier
            return
        self._announce(f"evaluating {moment} training: {', '.join(self._config.evaluation.sets)}")
        with module.timer(f"evaluation_{moment}"), trainer.precision_plugin.forward_context():
            self.results[moment] = heldout_results(self._config, module, self._decode)
        if trainer.is_global_zero:
            write_results(path, self.results[moment])
            for logger in trainer.loggers:
                logger.log_metrics(self._metrics(moment), step=min(module.completed_steps, self._config.job.steps - 1))

    def _metrics(self, moment: Moment) -> dict[str, float]:
        return {
            f"val/{name}/{row}": score(items, 0).value
            for name, result in self.results[moment].items()
            for row, items in (("rationale", result.rationale), ("prompt_only", result.prompt_only))
        }


def heldout_results(config: GraceConfig, module: GraceModule, decode: Callable[..., str]) -> dict[str, SetResult]:
    """Score the configured sets with the module's policy and engine as they stand."""
    region = config.backbone.pooling.region

    def embed(texts: list[str], role: Role) -> Embedded:
        return embed_texts(
            texts,
            role,
            policy=module.policy,
            engine=module.engine,
            prompts=module.prompts,
            max_tokens=config.evaluation.max_tokens or config.rollout.max_tokens,
            temperature=config.evaluation.temperature,
            seed=config.seed,
            regions=tuple(dict.fromkeys((region, PROMPT_ONLY))),
        )

    return evaluate_sets(config.evaluation, embed, decode, region)


def write_results(path: Path, results: dict[str, SetResult]) -> None:
    """Keep results with every item's score, so that differences can be resampled later."""

    def items(scores: ItemScores) -> dict[str, Any]:
        return {
            "figure": scores.figure(),
            "values": scores.values.tolist(),
            "human": None if scores.human is None else scores.human.tolist(),
        }

    write_json_atomic(
        path,
        {
            name: {
                "rationale": items(result.rationale),
                "prompt_only": items(result.prompt_only),
                "rationale_tokens": result.rationale_tokens,
                "examples": [asdict(example) for example in result.examples],
            }
            for name, result in results.items()
        },
    )


def read_results(path: Path) -> dict[str, SetResult]:
    """The inverse of `write_results`."""

    def items(record: dict[str, Any]) -> ItemScores:
        return ItemScores(np.array(record["values"]), None if record["human"] is None else np.array(record["human"]))

    return {
        name: SetResult(
            items(record["rationale"]),
            items(record["prompt_only"]),
            [Example(**example) for example in record["examples"]],
            record["rationale_tokens"],
        )
        for name, record in json.loads(path.read_text(encoding="utf-8")).items()
    }
