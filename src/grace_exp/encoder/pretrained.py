"""Find the model that a path or name stands for, with the settings of its training."""

import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from grace_exp.config.advice import override
from grace_exp.config.backbone import BackboneConfig, PoolingConfig
from grace_exp.config.compose import compose_settings, conf_dir
from grace_exp.config.prompt import PromptConfig
from grace_exp.encoder.adaptive_rule import AdaptiveRule, read_rule
from grace_exp.encoder.center import Center, read_center
from grace_exp.encoder.fingerprint import base_fingerprint
from grace_exp.encoder.modes import Mode
from grace_exp.errors import ConfigError, MissingResourceError

if TYPE_CHECKING:
    import torch

    from grace_exp.policy.load_backbone import Backbone

Schema = TypeVar("Schema")

CACHE_FOLDER = "embeddings"
"""Folder of the encoders' cache under `cache_dir`."""
SETTINGS_FILE = "grace_config.json"
"""File beside exported weights: prompt, pooling, token limit, and the origin of the model."""
TOKENIZER_FOLDER = "grace_tokenizer"
"""Folder in an export of stock sentence-transformers modules: the tokenizer without the chat template."""
PAPER_MAX_TOKENS = 2048
_EXPORTS = ("export/merged", "export/adapter")


@dataclass(frozen=True)
class Pretrained:
    """A model to load, and how it embeds.

    Attributes:
        backbone: The weights (without the adapter, if there is one), pooling and template variables.
        prompt: The model's prompt.
        max_tokens: Token limit of a rationale.
        mode: Which texts got rationales in training.
        adapter: A peft adapter to merge.
        seed: Seed of the tiny model's weights.
        base: Digest of the weights that the adapter was trained on; None: unknown.
        center: The mean that is subtracted from embeddings; None: none.
        rule: The rule of `mode=adaptive`; None: there is none.
    """

    backbone: BackboneConfig
    prompt: PromptConfig
    max_tokens: int = PAPER_MAX_TOKENS
    mode: Mode = "rationale"
    adapter: Path | None = None
    seed: int = 0
    base: str | None = None
    rule: AdaptiveRule | None = None
    center: Center | None = None


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """The contents of `grace_config.json`."""

    prompt: PromptConfig
    pooling: PoolingConfig
    template_kwargs: dict[str, str | int | bool] = field(default_factory=dict)
    max_tokens: int
    mode: Mode = "rationale"
    backbone: BackboneConfig | None = None
    seed: int = 0
    base: str | None = None
    """For an adapter: digest of the weights that it was trained on."""


def default_cache_dir() -> Path:
    """Return the default of `cache_dir`."""
    return Path(os.environ.get("GRACE_EXP_CACHE") or "~/.cache/grace-exp").expanduser()


def resolve(path_or_name: str, *, adapter: str | None = None, revision: str | None = None) -> Pretrained:
    """Return the model to load.

    Args:
        path_or_name: A run folder, one of its exports, a transformers model or peft adapter folder, a choice of
            `backbone=` (such as `smollm2`), or a hub name.
        adapter: A peft adapter folder for it; the adapter's settings take precedence.
        revision: Hub commit, tag or branch.

    Raises:
        MissingResourceError: There is no such folder, or it holds nothing that can be loaded.
        ConfigError: `grace_config.json` is damaged, or both are adapters.
    """
    folder = Path(path_or_name).expanduser()
    if folder.is_dir():
        found = _folder(export_in(folder))
    elif folder.exists() or path_or_name.startswith((".", "/", "~")):
        raise MissingResourceError(
            f"{path_or_name!r} is not a folder (working directory {Path.cwd()}): name a run folder, an exported or "
            "transformers model folder, a choice of backbone= such as smollm2, or a hub name"
        )
    else:
        found = _by_name(path_or_name, revision)
    if adapter is None:
        return found
    if found.adapter is not None:
        raise ConfigError(
            f"{path_or_name!r} is an adapter itself, and adapter={adapter!r} is another: name the model below them, or "
            "an export/merged, as the model"
        )
    where = Path(adapter).expanduser()
    if not (where / "adapter_config.json").is_file():
        raise MissingResourceError(f"adapter={adapter!r} is not a folder with an adapter_config.json")
    settings = _read_settings(where)
    rule = read_rule(where)
    if settings is None:
        return replace(found, adapter=where, rule=rule, center=None)  # the model's mean is that of other embeddings
    return replace(_with(found, settings, where), adapter=where, rule=rule)


def load(pretrained: Pretrained, *, cache_dir: Path, dtype: "torch.dtype") -> "Backbone":
    """Load the weights on the CPU, with adapters merged in full precision.

    Raises:
        MissingResourceError: The model cannot be loaded on this machine.
        ConfigError: The adapter was trained on another base model.
    """
    import torch

    from grace_exp.policy.load_backbone import load_backbone

    config = replace(pretrained.backbone, lora=None, gradient_checkpointing="off")
    first = dtype if pretrained.adapter is None else torch.float32
    backbone = load_backbone(config, cache_dir=cache_dir, seed=pretrained.seed, dtype=first)
    own_tokenizer = Path(config.path or "") / TOKENIZER_FOLDER
    if config.path is not None and own_tokenizer.is_dir():
        from transformers import AutoTokenizer

        backbone = replace(backbone, tokenizer=AutoTokenizer.from_pretrained(str(own_tokenizer)))
    if pretrained.adapter is None:
        return backbone
    from peft import PeftModel

    if pretrained.base is not None and base_fingerprint(backbone.model) != pretrained.base:
        raise ConfigError(
            f"{pretrained.adapter}: the weights of {config.path or config.name} are not those that the adapter was "
            "trained on: give the right model as backbone.path in its grace_config.json"
        )
    model: Any = PeftModel.from_pretrained(backbone.model, str(pretrained.adapter))
    return replace(backbone, model=model.merge_and_unload().to(dtype))


def export_in(folder: Path) -> Path:
    """Return the model folder inside a run folder; any other folder unchanged."""
    for name in _EXPORTS:
        if (folder / name).is_dir():
            return folder / name
    if (folder / "provenance.json").is_file():
        raise MissingResourceError(
            f"the run {folder} exported no model (it is still going on, was stopped, or had callbacks.export=[]). "
            f"Continue it with the same command and {override('job.resume', folder)}, or use its newest "
            f"checkpoint: the same command with job=embed {override('job.resume', folder)}"
        )
    return folder


def exports_in(folder: Path) -> list[Path]:
    """Return all model folders inside a run folder, or the model folder itself; empty if there is none."""
    found = [folder / name for name in _EXPORTS if (folder / name).is_dir()]
    is_model = (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file()
    return found or ([folder] if is_model else [])


def _folder(folder: Path) -> Pretrained:
    settings, rule = _read_settings(folder), read_rule(folder)
    if (folder / "config.json").is_file():
        found = Pretrained(BackboneConfig(name=folder.name, path=str(folder)), _paper_prompt(), rule=rule)
        return found if settings is None else _with(found, settings, folder)
    if not (folder / "adapter_config.json").is_file():
        raise MissingResourceError(
            f"{folder} holds neither config.json (a model) nor adapter_config.json (a peft adapter), and is not a run "
            "folder with an export"
        )
    if settings is not None and settings.backbone is not None:
        base = settings.backbone
    else:
        name = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
        if not name:
            raise MissingResourceError(
                f"{folder}/adapter_config.json does not name its base model: load that and give adapter={str(folder)!r}"
            )
        base = BackboneConfig(name=folder.name, path=name)
    found = Pretrained(base, _paper_prompt(), adapter=folder, rule=rule)
    return found if settings is None else _with(found, settings, folder)


def _with(found: Pretrained, settings: _Settings, folder: Path) -> Pretrained:
    backbone = replace(found.backbone, pooling=settings.pooling, template_kwargs=settings.template_kwargs)
    return replace(
        found,
        backbone=backbone,
        prompt=settings.prompt,
        max_tokens=settings.max_tokens,
        mode=settings.mode,
        seed=settings.seed,
        base=settings.base,
        center=read_center(folder, settings.pooling.transform),
    )


def _read_settings(folder: Path) -> _Settings | None:
    path = folder / SETTINGS_FILE
    if not path.is_file():
        return None
    try:
        return TypeAdapter(_Settings).validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ConfigError(f"{path}: {where}: {first['msg']}; export the run again") from error


def _by_name(name: str, revision: str | None) -> Pretrained:
    """Return a choice of `backbone=`, an export in a repository of a hub, or any other model of a hub."""
    known = _known_backbone(name, revision)
    if known is not None:
        return Pretrained(known, _paper_prompt())
    uploaded = _uploaded(name, revision)
    if uploaded is not None:
        return _folder(uploaded)
    return Pretrained(BackboneConfig(name=name.rpartition("/")[2], path=name, revision=revision), _paper_prompt())


def _uploaded(name: str, revision: str | None) -> Path | None:
    """Return the files of a hub repository that holds an export; None if it does not hold one, or does not exist."""
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        hf_hub_download(name, SETTINGS_FILE, revision=revision)
    except (HfHubHTTPError, OSError, ValueError):  # loading the model reports what is wrong with the name
        return None
    return Path(snapshot_download(name, revision=revision))


def _known_backbone(name: str, revision: str | None) -> BackboneConfig | None:
    """Return the choice of `backbone=` with that name or hub name; None if there is none.

    The hub name matters because Llama's template prints today's date unless the choice's variables are given.
    """
    choices = {path.stem: path for path in sorted((conf_dir() / "backbone").glob("*.yaml"))}
    for choice, path in choices.items():
        if name == choice or name == yaml.safe_load(path.read_text(encoding="utf-8")).get("path"):
            from omegaconf import OmegaConf

            settings = OmegaConf.to_container(compose_settings(f"backbone/{choice}", []).backbone, resolve=True)
            found = _checked(BackboneConfig, settings)
            return replace(found, revision=revision or found.revision)
    return None


def _paper_prompt() -> PromptConfig:
    record = yaml.safe_load((conf_dir() / "prompt" / "paper.yaml").read_text(encoding="utf-8"))
    return _checked(PromptConfig, record)


def _checked(schema: type[Schema], record: object) -> Schema:
    """Validate as JSON, because the strict schemas do not take Python dicts for dataclasses."""
    return TypeAdapter(schema).validate_json(json.dumps(record))
