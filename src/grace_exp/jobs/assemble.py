"""The parts that jobs share, wired from a configuration."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from grace_exp.config.root import GraceConfig
from grace_exp.data.prompts import PromptBuilder
from grace_exp.policy.backbone import Backbone, load_backbone
from grace_exp.policy.policy import Policy
from grace_exp.policy.reference import Reference
from grace_exp.rollout.protocol import RolloutEngine
from grace_exp.training.grace import GraceModule, SampleSink


@dataclass(frozen=True)
class Assembled:
    """A model with everything that speaks to it."""

    backbone: Backbone
    module: GraceModule

    def decode(self, token_ids: Sequence[int]) -> str:
        """Token ids to text for people; nothing is computed from it."""
        return str(self.backbone.tokenizer.decode(list(token_ids), skip_special_tokens=True)).strip()


def assemble(config: GraceConfig, log_samples: SampleSink) -> Assembled:
    """Load the backbone and build policy, reference, engine and prompts around it."""
    if config.hardware.threads is not None:
        torch.set_num_threads(config.hardware.threads)
    backbone = load_backbone(config.backbone, cache_dir=Path(config.cache_dir), seed=config.seed, dtype=torch.float32)
    policy = Policy(backbone.model, config.backbone.pooling, config.hardware, pad_token_id=backbone.pad_token_id)
    decode: Callable[[Sequence[int]], str] = lambda ids: str(backbone.tokenizer.decode(list(ids)))  # noqa: E731
    module = GraceModule(
        config,
        policy=policy,
        reference=Reference(policy) if config.objective.kl.coefficient > 0 else None,
        engine=build_engine(config, backbone),
        prompts=PromptBuilder(backbone.tokenizer, config.prompt, config.backbone.template_kwargs),
        decode=decode,
        log_samples=log_samples,
    )
    module.train()  # loaded models come in evaluation mode, of which Lightning would warn
    return Assembled(backbone, module)


def build_engine(config: GraceConfig, backbone: Backbone) -> RolloutEngine:
    """The engine that `rollout.engine` names."""
    match config.rollout.engine:
        case "transformers":
            from grace_exp.rollout.transformers_engine import TransformersEngine

            return TransformersEngine(
                backbone.model,
                end_token_ids=backbone.end_token_ids,
                pad_token_id=backbone.pad_token_id,
                batch_tokens=config.rollout.batch_tokens,
            )
