"""The whole configuration, and the rules between its groups."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator
from pydantic.dataclasses import dataclass

from grace_exp.config.backbone import BackboneConfig
from grace_exp.config.base import STRICT
from grace_exp.config.callbacks import CallbacksConfig
from grace_exp.config.data import DataConfig
from grace_exp.config.evaluation import EvaluationConfig
from grace_exp.config.hardware import HardwareConfig
from grace_exp.config.job import JobConfig
from grace_exp.config.logger import LoggerConfig
from grace_exp.config.objective import ObjectiveConfig
from grace_exp.config.optim import OptimConfig
from grace_exp.config.prompt import PromptConfig
from grace_exp.config.reward import RewardConfig
from grace_exp.config.rollout import RolloutConfig

Folder = Annotated[str, Field(min_length=1), AfterValidator(lambda path: str(Path(path).expanduser()))]


@dataclass(config=STRICT, frozen=True, kw_only=True)
class GraceConfig:
    """A run, completely."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")]
    """Of the run; part of its folder's name."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Every random draw derives from it."""
    run_dir: Folder
    """Where everything the run writes goes."""
    cache_dir: Folder
    """Converted models and prepared data, shared by runs."""
    job: JobConfig
    backbone: BackboneConfig
    data: DataConfig
    prompt: PromptConfig
    rollout: RolloutConfig
    reward: RewardConfig
    objective: ObjectiveConfig
    optim: OptimConfig
    hardware: HardwareConfig
    logger: LoggerConfig
    evaluation: EvaluationConfig
    callbacks: CallbacksConfig

    @model_validator(mode="after")
    def _groups_agree(self) -> Self:
        rules = [*self._sizes(), *self._machine(), *self._reward_and_data(), *self._job_and_parts()]
        problems = [message for broken, message in rules if broken]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _sizes(self) -> list[tuple[bool, str]]:
        batch, mini_batch, rollout = self.job.batch_size, self.objective.mini_batch_size, self.rollout
        processes = self.hardware.devices * self.hardware.nodes
        updates = self.job.steps * (batch // mini_batch)
        longest = max(rollout.max_tokens, self.evaluation.max_tokens or 0)
        return [
            (
                batch % mini_batch != 0,
                f"job.batch_size={batch} is not a multiple of objective.mini_batch_size={mini_batch}",
            ),
            (
                mini_batch % processes != 0,
                f"objective.mini_batch_size={mini_batch} is not a multiple of the {processes} processes of "
                "hardware.devices x hardware.nodes",
            ),
            (
                self.optim.warmup_steps > updates > 0,
                f"optim.warmup_steps={self.optim.warmup_steps} is more than the {updates} optimizer updates of "
                "job.steps x job.batch_size / objective.mini_batch_size",
            ),
            (
                rollout.batch_tokens < self.prompt.max_tokens + longest,
                f"rollout.batch_tokens={rollout.batch_tokens} cannot hold one sequence of prompt.max_tokens="
                f"{self.prompt.max_tokens} + {longest} rationale tokens (rollout.max_tokens, evaluation.max_tokens)",
            ),
        ]

    def _machine(self) -> list[tuple[bool, str]]:
        hardware = self.hardware
        processes = hardware.devices * hardware.nodes
        return [
            (
                processes > 1 and hardware.strategy == "auto",
                f"hardware.strategy='auto' is for one process, but hardware.devices x hardware.nodes = {processes}: "
                "set hardware.strategy=ddp",
            ),
            (
                hardware.accelerator == "cpu" and hardware.precision != "32-true",
                f"hardware.precision={hardware.precision!r} with hardware.accelerator='cpu': CPUs train in '32-true' "
                "(bf16 is slower there)",
            ),
            (
                hardware.keep_forward and self.job.batch_size != self.objective.mini_batch_size,
                "hardware.keep_forward=true needs one update a step: set objective.mini_batch_size="
                f"{self.job.batch_size} (job.batch_size)",
            ),
            (
                hardware.keep_forward and self.backbone.lora is not None and self.backbone.lora.dropout > 0,
                "hardware.keep_forward=true scores with the update's dropout: set backbone.lora.dropout=0",
            ),
        ]

    def _reward_and_data(self) -> list[tuple[bool, str]]:
        terms, data = self.reward.terms, self.data
        formula = terms.hard_negative.formula if terms.hard_negative is not None else data.mode
        return [
            (
                data.mode == "unsupervised" and terms.negative is not None,
                "reward.terms.negative is set, but data.mode='unsupervised' has no negatives: set "
                "reward.terms.negative=null or choose reward=paper_unsupervised",
            ),
            (
                data.mode == "supervised" and data.negatives == 0 and terms.negative is not None,
                "reward.terms.negative is set, but data.negatives=0: set reward.terms.negative=null",
            ),
            (
                formula != data.mode,
                f"reward.terms.hard_negative.formula={formula!r} with data.mode={data.mode!r}: they must be the same",
            ),
        ]

    def _job_and_parts(self) -> list[tuple[bool, str]]:
        trains = self.job.name == "train"
        return [
            (
                "adapter" in self.callbacks.export and self.backbone.lora is None,
                "callbacks.export contains 'adapter', but backbone.lora is null: there is no adapter to export",
            ),
            (
                trains and self.backbone.pooling.region == "text",
                "backbone.pooling.region='text' gives all rationales of a group the same embedding, so that no reward "
                "differs within it: train with 'text_and_rationale' or 'rationale'",
            ),
            (
                trains and self.rollout.group_size == 1,
                "rollout.group_size=1: an advantage compares the rationales of a group; train with 2 or more",
            ),
            (
                self.job.name == "evaluate" and not self.evaluation.sets,
                f"job=evaluate, but evaluation={self.evaluation.name} has no sets: choose evaluation=demo or heldout",
            ),
        ]
