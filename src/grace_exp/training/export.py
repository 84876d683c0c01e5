"""The exports of a run: Hugging Face folders with a model card."""

import json
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from peft import PeftModel

from grace_exp.config.callbacks import Export
from grace_exp.config.root import GraceConfig
from grace_exp.data.prompts import PromptBuilder
from grace_exp.encoder.fingerprint import base_fingerprint
from grace_exp.encoder.pretrained import SETTINGS_FILE
from grace_exp.encoder.pretrained_folder import write_module
from grace_exp.encoder.stock_modules import fits_stock_modules, is_stock, save_stock
from grace_exp.errors import ConfigError
from grace_exp.policy.load_backbone import Backbone
from grace_exp.tracking.atomic import atomic_folder, write_text_atomic
from grace_exp.tracking.summary import write_json_atomic
from grace_exp.training.model_card import model_card

FOLDER = "export"


def export_folder(config: GraceConfig, kind: str) -> Path:
    """Return the folder of an export format."""
    return Path(config.run_dir) / FOLDER / kind


def check_exportable(backbone: Backbone) -> None:
    """Save the small files of an export before training, into a folder that is deleted again.

    Raises:
        ConfigError: The model's configuration or the tokenizer cannot be saved.
    """
    base: Any = backbone.model.get_base_model() if isinstance(backbone.model, PeftModel) else backbone.model
    with tempfile.TemporaryDirectory() as folder:
        try:
            base.config.save_pretrained(folder)
            if base.generation_config is not None:
                base.generation_config.save_pretrained(folder)
            backbone.tokenizer.save_pretrained(folder)
        except (ValueError, TypeError, AttributeError, NotImplementedError) as error:
            raise ConfigError(
                f"callbacks.export: this model could not be exported at the end: {str(error).partition(chr(10))[0]}. "
                "Mend its configuration, or set callbacks.export=[] and keep the checkpoints"
            ) from error


def export(backbone: Backbone, config: GraceConfig, kind: Export, results: dict[str, Any]) -> Path:
    """Write an export under `<run_dir>/export/`. It replaces an earlier one as a whole, or not at all.

    `merged` loads with `AutoModelForCausalLM.from_pretrained`, `adapter` with peft's `AutoPeftModelForCausalLM`.
    Merging adds the adapters to the weights, so `merged` must come last.

    Args:
        backbone: The trained model.
        config: The settings of the run.
        kind: `adapter` or `merged`.
        results: Results for the model card, see `jobs.run_end`.

    Returns:
        The folder.
    """
    folder = export_folder(config, kind)
    model = backbone.model
    if kind == "merged" and isinstance(model, PeftModel):
        model = model.merge_and_unload()
    with atomic_folder(folder) as unfinished:
        _save_model(unfinished, kind, model, backbone, config)
        base = {"base": base_fingerprint(model)} if kind == "adapter" else {}
        write_json_atomic(unfinished / SETTINGS_FILE, _settings(config) | base)
        write_text_atomic(unfinished / "README.md", model_card(config, kind, results, stock=is_stock(unfinished)))
    return folder


def _save_model(folder: Path, kind: str, model: Any, backbone: Backbone, config: GraceConfig) -> None:
    """Write the weights, the tokenizer, and the files of sentence-transformers."""
    builder = PromptBuilder(backbone.tokenizer, config.prompt, config.backbone.template_kwargs, allow_empty=True)
    pooling, layers = config.backbone.pooling, model.config.get_text_config().num_hidden_layers
    if kind == "merged" and config.method.prompt_only and fits_stock_modules(builder, pooling, layers):
        save_stock(folder, model, backbone.tokenizer, builder, pooling, config.prompt.max_tokens)
        return
    model.save_pretrained(str(folder))
    if kind == "adapter":
        _name_base(folder / "adapter_config.json")
    backbone.tokenizer.save_pretrained(str(folder))
    instructions = config.prompt.instructions
    write_module(folder, {"query": instructions.query, "document": instructions.positive})


def _settings(config: GraceConfig) -> dict[str, Any]:
    return {
        "prompt": asdict(config.prompt),
        "pooling": asdict(config.backbone.pooling),
        "template_kwargs": config.backbone.template_kwargs,
        "max_tokens": config.rollout.max_tokens,
        "mode": config.encode_mode,
        "backbone": asdict(replace(config.backbone, path=_found_from_anywhere(config.backbone.path))),
        "seed": config.seed,
    }


def _found_from_anywhere(path: str | None) -> str | None:
    """Return the path of a local model as an absolute path, and a hub name unchanged."""
    local = path is not None and Path(path).expanduser().is_dir()
    return str(Path(path).expanduser().resolve()) if local and path is not None else path


def _name_base(file: Path) -> None:
    """Write the base model's path into peft's settings so that it is found from any folder."""
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = _found_from_anywhere(settings.get("base_model_name_or_path"))
    write_json_atomic(file, settings)
