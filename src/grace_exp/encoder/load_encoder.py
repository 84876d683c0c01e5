"""Load an encoder: its model with the settings that it was trained with, its engine and its cache."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from grace_exp.config.backbone import PoolingConfig
from grace_exp.config.hardware import HardwareConfig
from grace_exp.config.prompt import PromptConfig
from grace_exp.encoder.cache import RationaleCache
from grace_exp.encoder.engines import EngineMaker, engine_maker
from grace_exp.encoder.pretrained import CACHE_FOLDER, default_cache_dir, load, resolve
from grace_exp.policy.policy import Policy

if TYPE_CHECKING:
    from grace_exp.encoder.encoder import GraceEncoder


def load_encoder(
    cls: type["GraceEncoder"],
    name: str,
    *,
    adapter: str | None,
    engine: str | EngineMaker,
    device: str | torch.device | None,
    dtype: torch.dtype | None,
    cache: RationaleCache | str | Path | bool,
    prompt: PromptConfig | str | None,
    pooling: PoolingConfig | None,
    max_tokens: int | None,
    hardware: HardwareConfig | None,
    engine_overrides: Sequence[str],
    revision: str | None,
    truncate_dim: int | None,
) -> "GraceEncoder":
    """Return an encoder of the class `cls`; `GraceEncoder.from_pretrained` says what the arguments mean."""
    found = resolve(name, adapter=adapter, revision=revision)
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    weights = dtype or (torch.float32 if chosen.type == "cpu" else torch.bfloat16)
    backbone = load(found, cache_dir=default_cache_dir(), dtype=weights)
    policy = Policy(
        backbone.model,
        pooling or found.backbone.pooling,
        hardware or HardwareConfig(name="encoder", score_tokens=4096 if chosen.type == "cpu" else 16384),
        pad_token_id=backbone.pad_token_id,
    )
    policy.to(chosen).eval()
    wanted_prompt = (
        replace(found.prompt, name="own", system=prompt) if isinstance(prompt, str) else prompt or found.prompt
    )
    budget = found.max_tokens if max_tokens is None else max_tokens
    make = engine_maker(engine, engine_overrides) if isinstance(engine, str) else engine
    return cls(
        backbone,
        policy=policy,
        engine=make(backbone, wanted_prompt.max_tokens, budget),
        prompt=wanted_prompt,
        max_tokens=budget,
        mode=found.mode,
        template_kwargs=found.backbone.template_kwargs,
        cache=_cache(cache),
        name=name,
        truncate_dim=truncate_dim,
        rule=found.rule if prompt is None and pooling is None else None,
        center=found.center if prompt is None and pooling is None else None,
    )


def _cache(cache: RationaleCache | str | Path | bool) -> RationaleCache | None:
    if isinstance(cache, RationaleCache):
        return cache
    if isinstance(cache, bool):
        return RationaleCache(default_cache_dir() / CACHE_FOLDER) if cache else None
    return RationaleCache(cache)
