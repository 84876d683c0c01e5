"""Make the engine of a loaded model outside a run."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from grace_exp.config.compose import compose_config
from grace_exp.config.rollout import RolloutConfig
from grace_exp.config.root import GraceConfig
from grace_exp.encoder.pretrained import default_cache_dir
from grace_exp.errors import ConfigError
from grace_exp.rollout.protocol import RolloutEngine

if TYPE_CHECKING:
    from grace_exp.policy.load_backbone import Backbone

EngineMaker = Callable[["Backbone", int, int], RolloutEngine]
"""A function that makes a model's engine, for prompts and rationales of at most so many tokens."""

ENGINES = ("transformers", "vllm", "vllm_server")


def engine_maker(name: str, overrides: Sequence[str]) -> EngineMaker:
    """Return a function that makes the engine `name`, as in `rollout=`, with the settings of that choice.

    Args:
        name: One of `ENGINES`.
        overrides: Settings of `rollout` as on the command line.

    Raises:
        ConfigError: There is no engine of that name.
    """
    if name not in ENGINES:
        raise ConfigError(f"engine={name!r} is not one of {', '.join(ENGINES)}")

    def make(backbone: "Backbone", prompt_tokens: int, max_tokens: int) -> RolloutEngine:
        plain = name == "transformers" and not overrides  # avoids composing settings, which takes a second
        config = None if plain else _config(name, overrides, backbone, prompt_tokens, max_tokens)
        if config is None or name == "transformers":
            from grace_exp.rollout.transformers_engine import TransformersEngine

            return TransformersEngine(
                backbone.model,
                end_token_ids=backbone.end_token_ids,
                pad_token_id=backbone.pad_token_id,
                batch_tokens=RolloutConfig.batch_tokens if config is None else config.rollout.batch_tokens,
            )
        from grace_exp.rollout.vllm.build import build_vllm, build_vllm_server

        if name == "vllm":
            return build_vllm(config, backbone.model, backbone.end_token_ids)
        return build_vllm_server(config, backbone.model, backbone.end_token_ids, first=True)

    return make


def _config(
    name: str, overrides: Sequence[str], backbone: "Backbone", prompt_tokens: int, max_tokens: int
) -> GraceConfig:
    """Return the settings of a run with this engine on this device; only those of the engine are used."""
    on_cpu = backbone.model.device.type == "cpu"
    sizes = [f"prompt.max_tokens={prompt_tokens}", f"rollout.max_tokens={max_tokens}"]
    if prompt_tokens + max_tokens > RolloutConfig.batch_tokens:
        sizes.append(f"rollout.batch_tokens={prompt_tokens + max_tokens}")
    dtype = "bfloat16" if backbone.model.dtype is torch.bfloat16 else "float32"
    device = [f"hardware={'cpu' if on_cpu else 'gpu'}", f"rollout.vllm.dtype={dtype}"]
    folder = default_cache_dir() / "engines"  # for a server's log
    return compose_config([f"rollout={name}", *device, *sizes, *overrides], folder)
