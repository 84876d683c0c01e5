"""Build the parts that several jobs need from the settings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from grace_exp.config.engine_use import engine_of
from grace_exp.config.root import GraceConfig
from grace_exp.data.prompts import PromptBuilder
from grace_exp.jobs.terminal import is_first_process
from grace_exp.objective.registry import needs_reference
from grace_exp.policy.average import MovingAverage
from grace_exp.policy.load_backbone import Backbone, load_backbone
from grace_exp.policy.policy import Policy
from grace_exp.policy.reference import Reference
from grace_exp.rollout.longest import longest_tokens
from grace_exp.rollout.protocol import RolloutEngine
from grace_exp.training.grace import GraceModule, SampleSink
from grace_exp.training.module import StepModule
from grace_exp.training.plan.dimensions import dimensions_of
from grace_exp.training.plan.run_plan import RunPlan, plan_run, planned_memory, with_planned_budgets
from grace_exp.training.plan.this_device import device_name, total_memory
from grace_exp.training.plan.usage import Usage

if TYPE_CHECKING:
    from grace_exp.training.baselines.initial_model import InitialModel, InitialModelEngine


@dataclass(frozen=True)
class Assembled:
    """A model with its tokenizer, engine, prompts and module."""

    backbone: Backbone
    module: StepModule
    plan: RunPlan | None = None
    """What the run will take; None: the plan does not support this kind of model."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return token ids as text for display; nothing is computed from it."""
        return str(self.backbone.tokenizer.decode(list(token_ids), skip_special_tokens=True)).strip()


def assemble(config: GraceConfig, log_samples: SampleSink) -> Assembled:
    """Load the backbone and build policy, reference, engine and prompts for it."""
    if config.hardware.threads is not None:
        torch.set_num_threads(config.hardware.threads)
    backbone = load_backbone(
        config.backbone,
        cache_dir=Path(config.cache_dir),
        seed=config.seed,
        dtype=torch.float32,
        longest=longest_tokens(config),
    )
    config, plan = _planned(config, backbone)
    policy = Policy(backbone.model, config.backbone.pooling, config.hardware, pad_token_id=backbone.pad_token_id)
    prompts = PromptBuilder(
        backbone.tokenizer,
        config.prompt,
        config.backbone.template_kwargs,
        instructions=config.data.instructions,
    )
    decode: Callable[..., str] = lambda ids, **options: str(backbone.tokenizer.decode(list(ids), **options))  # noqa: E731
    if config.method.is_infonce:
        module = _contrastive(config, backbone, policy, prompts)
    else:
        reference, encoder = _reference_and_encoder(config, policy)
        module = _grace_kind(config)(
            config,
            policy=policy,
            reference=reference,
            encoder=encoder,
            engine=build_engine(config, backbone, sharded=_is_sharded(config)),
            prompts=prompts,
            decode=decode,
            log_samples=log_samples,
        )
    module.train()  # loaded models are in evaluation mode, and Lightning would warn
    module.usage = Usage(plan) if plan is not None else None
    return Assembled(backbone, module, plan)


def _planned(config: GraceConfig, backbone: Backbone) -> tuple[GraceConfig, RunPlan | None]:
    """Return the settings with token budgets for this device, and the plan that they come from."""
    dimensions = dimensions_of(backbone.model.config, config.backbone.lora)
    if dimensions is None:
        return config, None
    accelerator = config.hardware.accelerator
    memory = planned_memory(config, total_memory(accelerator))
    plan = plan_run(config, dimensions, memory, device=device_name(accelerator))
    return with_planned_budgets(config, plan), plan


def _grace_kind(config: GraceConfig) -> type[GraceModule]:
    if config.method.name == "grace":
        return GraceModule
    from grace_exp.training.baselines.rejection_sft import RejectionSftModule

    return RejectionSftModule


def _reference_and_encoder(
    config: GraceConfig, policy: Policy
) -> tuple[Reference | None, Reference | MovingAverage | None]:
    """Return the models that training reads besides the policy, if any; frozen encoder and reference are one model."""
    if config.job.name != "train":
        return None, None
    penalty, kind = needs_reference(config.objective), config.reward.encoder.kind
    reference = Reference(policy) if penalty or kind == "frozen" else None
    average = MovingAverage(policy, config.reward.encoder.decay) if kind == "ema" else None
    return reference if penalty else None, reference if kind == "frozen" else average


def _contrastive(config: GraceConfig, backbone: Backbone, policy: Policy, prompts: PromptBuilder) -> StepModule:
    """Return the module of a `method` that trains embeddings."""
    if config.method.name == "contrastive_on_rationales":
        from grace_exp.training.baselines.on_rationales import ContrastiveOnRationalesModule

        start, engine = _initial_model_engine(config, backbone)
        return ContrastiveOnRationalesModule(config, policy=policy, start=start, engine=engine, prompts=prompts)
    from grace_exp.training.baselines.contrastive import ContrastiveModule
    from grace_exp.training.baselines.simcse import SimCseModule

    kind = SimCseModule if config.method.name == "simcse" else ContrastiveModule
    return kind(
        config, policy=policy, engine=build_engine(config, backbone, sharded=_is_sharded(config)), prompts=prompts
    )


def _initial_model_engine(config: GraceConfig, backbone: Backbone) -> "tuple[InitialModel, InitialModelEngine]":
    """Return the model as it is now, and an engine that keeps writing with it while the policy is trained."""
    from grace_exp.encoder.cache import GIB, RationaleCache
    from grace_exp.encoder.fingerprint import fingerprint
    from grace_exp.encoder.model_cache import ModelCache, computed_with
    from grace_exp.encoder.pretrained import CACHE_FOLDER
    from grace_exp.training.baselines.initial_model import InitialModel, InitialModelEngine

    apart = config.rollout.engine != "transformers" or _is_sharded(config)
    start = InitialModel(backbone.model, apart=apart)
    limit = int(config.job.encode.cache_gib * GIB)
    cache = RationaleCache(Path(config.cache_dir) / CACHE_FOLDER, size_limit=limit)
    how = computed_with(
        config.rollout.engine,
        config.rollout.vllm.dtype,
        backbone.end_token_ids,
        config.hardware.accelerator,
        config.backbone.attention,
        config.hardware.precision,
    )
    model = f"{fingerprint(start.model)} {how}"
    engine = build_engine(config, replace(backbone, model=start.model))
    return start, InitialModelEngine(start, engine, ModelCache(cache, model, config.backbone.pooling))


def _is_sharded(config: GraceConfig) -> bool:
    """Whether the trainer will shard the policy's weights among processes."""
    return config.job.name == "train" and config.hardware.strategy == "fsdp2"


def build_engine(config: GraceConfig, backbone: Backbone, *, sharded: bool = False) -> RolloutEngine:
    """Return the engine that the job needs; see `engine_of`.

    Args:
        config: The settings.
        backbone: The model that writes.
        sharded: Whether that model will be sharded among processes.
    """
    match engine_of(config):
        case "transformers":
            from grace_exp.rollout.transformers_engine import TransformersEngine

            return TransformersEngine(
                backbone.model,
                end_token_ids=backbone.end_token_ids,
                pad_token_id=backbone.pad_token_id,
                batch_tokens=config.rollout.batch_tokens,
                sharded=sharded,
                training=config.job.name == "train",
            )
        case "vllm":
            from grace_exp.rollout.vllm.build import build_vllm

            return build_vllm(config, backbone.model, backbone.end_token_ids)
        case "vllm_server":
            from grace_exp.rollout.vllm.build import build_vllm_server

            return build_vllm_server(config, backbone.model, backbone.end_token_ids, first=is_first_process())
