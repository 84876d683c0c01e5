"""Build the encoder that the settings describe."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from grace_exp.config.advice import override
from grace_exp.config.root import GraceConfig
from grace_exp.data.batch import Role
from grace_exp.encoder.adaptive_rule import AdaptiveRule, read_rule, required_rule
from grace_exp.encoder.cache import GIB, RationaleCache
from grace_exp.encoder.encoder import GraceEncoder
from grace_exp.encoder.modes import Mode
from grace_exp.encoder.pretrained import CACHE_FOLDER, exports_in, resolve
from grace_exp.encoder.vectors import Vectors
from grace_exp.errors import ConfigError, MissingResourceError
from grace_exp.jobs.assemble import Assembled, assemble, build_engine
from grace_exp.jobs.processes import processes
from grace_exp.jobs.run_end import exports_after
from grace_exp.jobs.terminal import is_first_process, our_console
from grace_exp.policy.load_backbone import Backbone
from grace_exp.rollout.protocol import RolloutEngine
from grace_exp.training.resume import check_same_model, embedded_otherwise, find_checkpoint, load_checkpoint, run_folder

_PLAIN: Any = {"highlight": False, "markup": False, "soft_wrap": True}


def build_encoder(config: GraceConfig, device: torch.device) -> GraceEncoder:
    """Load `job.model` with its own settings; otherwise the configured backbone, with the weights of `job.resume`.

    Raises:
        MissingResourceError: The model or checkpoint does not exist.
        ConfigError: The checkpoint is of another model, or the mode is adaptive and the model has no rule.
    """
    _check_rule(config)
    cache = encoder_cache(config) if config.job.encode.cache_gib else None
    if config.job.model is not None:
        if config.hardware.threads is not None:
            torch.set_num_threads(config.hardware.threads)
        return GraceEncoder.from_pretrained(
            config.job.model,
            engine=partial(_engine, config),
            device=device,
            cache=False if cache is None else cache,  # an empty cache has length 0, so it would count as false
            max_tokens=_budget(config),
            hardware=config.hardware,
        )
    budget = _budget(config) or config.rollout.max_tokens
    assembled = assemble(_sized(config, config.prompt.max_tokens, budget), lambda step, rows: None)
    module = assembled.module
    if config.job.resume is not None:
        checkpoint = load_checkpoint(find_checkpoint(config.job.resume))
        check_same_model(checkpoint["grace"]["config"], config)
        say_what_differs(checkpoint["grace"]["config"], config)
        module.load_state_dict(checkpoint["state_dict"])
    module.to(device)
    return encoder_around(assembled, config, max_tokens=budget, cache=cache)


def say_what_differs(saved: dict[str, Any], config: GraceConfig) -> None:
    """Print the settings of this command that change the embeddings of `job.resume`, which only gives weights."""
    for line in embedded_otherwise(saved, config):
        our_console().print(f"job.resume: other embeddings than in its run: {line}", **_PLAIN)


@contextmanager
def opened_encoder(config: GraceConfig) -> Iterator[GraceEncoder]:
    """Build the encoder on all processes of the job, let it compute in the set precision, and close it afterwards."""
    with processes(config.hardware) as device, closing(build_encoder(config, device)) as encoder:
        # Weights of a user's own model are bfloat16 already; those of a run are float32, as in training.
        bf16 = config.hardware.precision == "bf16-mixed" and config.job.model is None
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            yield encoder


def encoder_around(
    assembled: Assembled, config: GraceConfig, *, max_tokens: int, cache: RationaleCache | None
) -> GraceEncoder:
    """Return an encoder for a loaded model, with its settings in training."""
    return GraceEncoder(
        assembled.backbone,
        policy=assembled.module.policy,
        engine=assembled.module.engine,
        prompt=config.prompt,
        max_tokens=max_tokens,
        mode=config.encode_mode,
        template_kwargs=config.backbone.template_kwargs,
        cache=cache,
        name=config.job.resume or config.backbone.name,
        rule=_rule_of_resumed(config),
    )


def encode_whole(
    config: GraceConfig, encoder: GraceEncoder, texts: Sequence[str], *, mode: Mode, role: Role | str, samples: int = 1
) -> Vectors:
    """Return embeddings of a sample with the settings of `job.encode`, neither shortened nor normalised.

    Args:
        config: The settings; `job.encode`, the seed and the progress display are read.
        encoder: The model.
        texts: One text or more.
        mode: Which texts get a rationale; it replaces `job.encode.mode`.
        role: Role of the texts.
        samples: Rationales per text.

    Returns:
        float32 [texts, hidden], not normalised.
    """
    encode = config.job.encode
    vectors = encoder.encode(
        list(texts),
        batch_size=encode.batch_size,
        show_progress_bar=is_first_process() and config.callbacks.progress == "bar",
        truncate_dim=encoder.get_embedding_dimension(),
        mode=mode,
        role=role,
        max_tokens=encode.max_tokens,
        temperature=encode.temperature,
        seed=config.seed,
        samples=samples,
    )
    return np.asarray(vectors)


def rule_folders(config: GraceConfig) -> list[Path]:
    """Return the model's folders that can hold the rule of `mode=adaptive`: a run's exports, or a model folder.

    Raises:
        MissingResourceError: The model has no folder, or its run has exported none.
    """
    job = config.job
    if job.resume is not None:
        named, found = run_folder(job.resume), exports_of(job.resume)
    else:
        named = Path(str(job.model)).expanduser()
        found = exports_in(named) if named.is_dir() else []
    if not found:
        raise MissingResourceError(
            (_not_of_these_weights(job.resume) if job.resume is not None else "")
            or f"{named} is neither a model folder nor a run with an export, so the result has no place: "
            "name one as job.model; GraceEncoder.save_pretrained makes a folder of a model of a hub"
        )
    return found


def _check_rule(config: GraceConfig) -> None:
    """Check, before anything loads, that there is a rule for an adaptive mode."""
    job = config.job
    if job.encode.mode != "adaptive":
        return
    rule = _rule_of_resumed(config) if job.model is None else resolve(job.model).rule
    if rule is None and job.resume is not None and job.model is None and not exports_of(job.resume):
        reason = _not_of_these_weights(job.resume)
        if reason:
            raise ConfigError(f"mode=adaptive: {reason}")
    required_rule(rule, str(job.model or job.resume or config.backbone.name))


def _rule_of_resumed(config: GraceConfig) -> AdaptiveRule | None:
    """Return the rule of the run whose checkpoint is used."""
    if config.job.resume is None:
        return None
    rules = map(read_rule, exports_of(config.job.resume))
    return next((rule for rule in rules if rule is not None), None)


def exports_of(resume: str) -> list[Path]:
    """Return the exports of the weights that `job.resume` names, without exports of other steps of that run."""
    steps = find_checkpoint(resume).stem.removeprefix("step-")
    return exports_after(run_folder(resume), int(steps)) if steps.isdecimal() else []


def _not_of_these_weights(resume: str) -> str:
    """Say why a run with exports has none of a checkpoint; empty if it has no exports."""
    folder, checkpoint = run_folder(resume), find_checkpoint(resume)
    if not exports_in(folder):
        return ""
    return (
        f"the exports in {folder} are not known to be of {checkpoint.name}: end the run (its command with "
        f"{override('job.resume', folder)}), or use the exports themselves: {override('job.model', folder)}"
    )


def _budget(config: GraceConfig) -> int | None:
    """Return the configured token limit of a rationale; None: the model's own, or that of training."""
    evaluation = config.evaluation.max_tokens if config.job.name in ("evaluate", "distill") else None
    return config.job.encode.max_tokens or evaluation


def _engine(config: GraceConfig, backbone: Backbone, prompt_tokens: int, max_tokens: int) -> RolloutEngine:
    """Return the configured engine, for a model with its own settings."""
    return build_engine(_sized(config, prompt_tokens, max_tokens), backbone)


def _sized(config: GraceConfig, prompt_tokens: int, max_tokens: int) -> GraceConfig:
    """Return the settings for sequences of these lengths, because engines are made for the longest sequence."""
    batch_tokens = max(config.rollout.batch_tokens, prompt_tokens + max_tokens)
    return replace(
        config,
        prompt=replace(config.prompt, max_tokens=prompt_tokens),
        rollout=replace(config.rollout, max_tokens=max_tokens, batch_tokens=batch_tokens),
    )


def encoder_cache(config: GraceConfig) -> RationaleCache:
    """Return the cache under `cache_dir`, with the configured size limit."""
    return RationaleCache(Path(config.cache_dir) / CACHE_FOLDER, size_limit=int(config.job.encode.cache_gib * GIB))
