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
from grace_exp.config.method import MethodConfig, method_rules
from grace_exp.config.objective import ObjectiveConfig
from grace_exp.config.optim import OptimConfig
from grace_exp.config.prompt import PromptConfig
from grace_exp.config.reward import RewardConfig
from grace_exp.config.rollout import RolloutConfig
from grace_exp.config.vllm import MAX_LORA_RANK

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
    optimized_metric: Annotated[str, Field(min_length=1)] | None = None
    """The figure that a sweep marks the best of and Optuna optimises, by metric name; null: none."""
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

    @model_validator(mode="after")
    def _groups_agree(self) -> Self:
        rules = [*self._sizes(), *self._machine(), *self._job_and_parts(), *self._engine(), *method_rules(self)]
        if not self.method.is_infonce:
            rules += self._reward_and_data()
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
        replay = self.objective.replay
        share = replay.share if replay is not None else 0.0
        stored = round(share * self.objective.mini_batch_size)
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
                hardware.keep_forward
                and self.method.name == "grace"
                and self.backbone.lora is not None
                and self.backbone.lora.dropout > 0,
                "hardware.keep_forward=true scores with the update's dropout: set backbone.lora.dropout=0",
            ),
            (
                hardware.keep_forward and self.objective.dynamic_sampling is not None,
                "hardware.keep_forward=true keeps forwards of rationales that objective.dynamic_sampling may exchange: "
                "set hardware.keep_forward=false",
            ),
            (
                hardware.keep_forward and self.objective.replay is not None,
                "hardware.keep_forward=true takes scored log-probs for old ones, which those of stored rationales "
                "(objective.replay) are not: set hardware.keep_forward=false",
            ),
            (
                replay is not None and (stored == 0 or stored % processes != 0),
                f"objective.replay.share={share} of objective.mini_batch_size={self.objective.mini_batch_size} is "
                f"{stored} stored instances an update: it must be a multiple of the {processes} processes, and not 0",
            ),
        ]

    def _engine(self) -> list[tuple[bool, str]]:
        engine, vllm, lora = self.rollout.engine, self.rollout.vllm, self.backbone.lora
        processes = self.hardware.devices * self.hardware.nodes
        by_vllm = engine != "transformers"
        return [
            (
                by_vllm and vllm.lora == "adapter" and lora is None,
                "rollout.vllm.lora='adapter', but backbone.lora is null: there is no adapter to send",
            ),
            (
                by_vllm and vllm.lora == "adapter" and lora is not None and lora.rank > MAX_LORA_RANK,
                f"rollout.vllm.lora='adapter' with backbone.lora.rank={lora and lora.rank}: vLLM's adapters have rank "
                f"{MAX_LORA_RANK} at most; set rollout.vllm.lora=merged",
            ),
            (
                engine == "vllm" and processes % vllm.tensor_parallel != 0,
                f"rollout.vllm.tensor_parallel={vllm.tensor_parallel} does not divide the {processes} processes of "
                "hardware.devices x hardware.nodes: engines in process are shared by whole groups of them",
            ),
            (
                engine == "vllm_server" and processes > 1 and vllm.server.url is None and vllm.server.port is None,
                f"rollout=vllm_server with {processes} processes: they find the one server by its port; set "
                "rollout.vllm.server.port (or .url, of a server that runs already)",
            ),
            (
                by_vllm and vllm.max_sequences < self.rollout.group_size,
                f"rollout.vllm.max_sequences={vllm.max_sequences} is less than rollout.group_size="
                f"{self.rollout.group_size}: the rationales of one text are one request",
            ),
            (
                engine == "vllm_server"
                and self.hardware.accelerator == "gpu"
                and vllm.server.url is None
                and vllm.server.devices is None,
                "rollout=vllm_server on a machine with GPUs: say which are the server's and not the trainer's, e.g. "
                f"rollout.vllm.server.devices='{processes}' (or rollout.vllm.server.url, of a running server)",
            ),
            (
                engine == "vllm_server" and self.hardware.nodes > 1 and vllm.server.url is None,
                f"rollout=vllm_server with hardware.nodes={self.hardware.nodes}: start the server by itself and set "
                "rollout.vllm.server.url",
            ),
        ]

    def _reward_and_data(self) -> list[tuple[bool, str]]:
        terms, data = self.reward.terms, self.data
        return [
            (
                data.mode == "unsupervised" and terms.negative is not None,
                "reward.terms.negative is set, but data.mode='unsupervised' has no negatives: set "
                "reward.terms.negative=null or choose reward=paper_unsupervised",
            ),
            (
                data.mode != "unsupervised" and data.negative_counts() == {0} and terms.negative is not None,
                f"reward.terms.negative is set, but data.negatives={data.negatives} (or the sources' own) leaves no "
                "instance a negative: set reward.terms.negative=null",
            ),
            (
                terms.faithfulness is not None and self.backbone.pooling.region == "rationale",
                "reward.terms.faithfulness compares with the text without rationale, which backbone.pooling.region="
                "'rationale' has no embedding for: set 'text_and_rationale', or reward.terms.faithfulness=null",
            ),
            (
                terms.faithfulness is not None
                and self.job.batch_size < 2 * self.hardware.devices * self.hardware.nodes,
                f"reward.terms.faithfulness swaps rationales between the instances of a process, but job.batch_size="
                f"{self.job.batch_size} gives some fewer than 2: raise it, or set reward.terms.faithfulness=null",
            ),
        ]

    def _monitor(self) -> list[tuple[bool, str]]:
        evaluation, monitor = self.evaluation, self.callbacks.checkpoint.monitor
        held_out = monitor.removeprefix("val/").removesuffix("/rationale") if monitor else None
        overlap = monitor == "embed/augmentation_overlap"
        return [
            (
                evaluation.every_n_steps is not None and not evaluation.sets,
                f"evaluation.every_n_steps={evaluation.every_n_steps}, but evaluation={evaluation.name} has no sets: "
                "choose evaluation=demo or heldout",
            ),
            (
                monitor is not None and not overlap and held_out not in evaluation.sets,
                f"callbacks.checkpoint.monitor={monitor}, but evaluation={evaluation.name} has no set {held_out!r}",
            ),
            (
                monitor is not None and not overlap and evaluation.every_n_steps is None,
                f"callbacks.checkpoint.monitor={monitor} is not measured during training: set evaluation.every_n_steps",
            ),
            (
                overlap and (self.method.is_infonce or self.job.batch_size == 1 or self.rollout.group_size == 1),
                "callbacks.checkpoint.monitor=embed/augmentation_overlap compares several rationales of several texts: "
                "it needs a method with rewards, and job.batch_size and rollout.group_size of 2 or more",
            ),
        ]

    def _job_and_parts(self) -> list[tuple[bool, str]]:
        trains = self.job.name == "train"
        metric = self.optimized_metric or ""
        held_out = metric.removeprefix("val/").removesuffix("/rationale")
        return [
            (
                metric == f"val/{held_out}/rationale" and held_out not in self.evaluation.sets,
                f"optimized_metric={metric}, but evaluation={self.evaluation.name} has no set {held_out!r}: choose "
                "another evaluation, as evaluation=demo, or another metric",
            ),
            *self._monitor(),
            (
                "adapter" in self.callbacks.export and self.backbone.lora is None,
                "callbacks.export contains 'adapter', but backbone.lora is null: there is no adapter to export",
            ),
            (
                trains and not self.method.is_infonce and self.backbone.pooling.region == "text",
                "backbone.pooling.region='text' gives all rationales of a group the same embedding, so that no reward "
                "differs within it: train with 'text_and_rationale' or 'rationale'",
            ),
            (
                trains
                and not self.method.is_infonce
                and self.rollout.group_size == 1
                and self.objective.algorithm not in ("remax", "reinforce_pp"),
                "rollout.group_size=1: an advantage compares the rationales of a group; train with 2 or more, or with "
                "objective=remax or reinforce_pp",
            ),
            (
                self.job.name == "evaluate"
                and not self.evaluation.sets
                and self.evaluation.benchmark is None
                and self.evaluation.general is None,
                f"job=evaluate, but evaluation={self.evaluation.name} has no sets: choose evaluation=demo or heldout, "
                "a benchmark, as evaluation=offline_small, or evaluation=general",
            ),
            (
                self.job.name == "evaluate" and self.evaluation.general is not None and self.job.model is not None,
                f"job.model={self.job.model} with evaluation={self.evaluation.name}: general ability is measured "
                "beside the base model's, with the backbone's settings and job.resume; job.model is for benchmarks, as "
                "evaluation=offline_small",
            ),
            (
                self.job.name == "evaluate" and bool(self.evaluation.sets) and self.job.model is not None,
                f"job.model={self.job.model} with evaluation={self.evaluation.name}: held-out sets are measured with "
                "job.resume; job.model is for benchmarks, as evaluation=offline_small",
            ),
        ]
