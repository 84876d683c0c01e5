"""All groups of settings together, before the rules between them are checked."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from grace_exp.config.backbone import BackboneConfig
from grace_exp.config.base import STRICT
from grace_exp.config.callbacks import CallbacksConfig
from grace_exp.config.data import DataConfig
from grace_exp.config.evaluation import EvaluationConfig
from grace_exp.config.hardware import HardwareConfig
from grace_exp.config.job import JobConfig
from grace_exp.config.logger import LoggerConfig
from grace_exp.config.method import MethodConfig
from grace_exp.config.objective import ObjectiveConfig
from grace_exp.config.optim import OptimConfig
from grace_exp.config.prompt import PromptConfig
from grace_exp.config.reward import RewardConfig
from grace_exp.config.rollout import RolloutConfig

Folder = Annotated[str, Field(min_length=1), AfterValidator(lambda path: str(Path(path).expanduser()))]


@dataclass(config=STRICT, frozen=True, kw_only=True)
class Groups:
    """The settings of a run. `GraceConfig` adds the rules of config/rules/."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$", max_length=128)]
    """Name of the run; part of its folder's name."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """The seed from which every random draw derives."""
    run_dir: Folder
    """The folder of everything that the run writes."""
    cache_dir: Folder
    """The folder of converted models and prepared data, which runs share."""
    optimized_metric: Annotated[str, Field(min_length=1)] | None = None
    """The metric by which a sweep marks its best run and Optuna optimises; null: none."""
    job: JobConfig
    backbone: BackboneConfig
    data: DataConfig
    prompt: PromptConfig
    method: MethodConfig
    rollout: RolloutConfig
    reward: RewardConfig
    objective: ObjectiveConfig
    optim: OptimConfig
    hardware: HardwareConfig
    logger: LoggerConfig
    evaluation: EvaluationConfig
    callbacks: CallbacksConfig

    @property
    def encode_mode(self) -> Literal["rationale", "prompt_only", "query_only", "document_only"]:
        """Which texts get rationales in training, and therefore in what is measured and exported."""
        return "prompt_only" if self.method.prompt_only else self.rollout.mode

    @property
    def processes(self) -> int:
        """The number of training processes on all nodes."""
        return self.hardware.devices * self.hardware.nodes
