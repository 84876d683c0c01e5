"""What a run leaves for others: Hugging Face folders with a model card."""

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
from grace_exp.encoder.stock_modules import fits_stock_modules, save_stock
from grace_exp.errors import ConfigError
from grace_exp.policy.load_backbone import Backbone
from grace_exp.tracking.atomic import atomic_folder, write_text_atomic
from grace_exp.tracking.summary import write_json_atomic

FOLDER = "export"


def export_folder(config: GraceConfig, kind: str) -> Path:
    """Where a format goes."""
    return Path(config.run_dir) / FOLDER / kind


def check_exportable(backbone: Backbone) -> None:
    """Save what is small of an export, before training, into a folder that is deleted again.

    Raises:
        ConfigError: Configuration or tokenizer cannot be saved.
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
    """Write a format under `<run_dir>/export/`: the whole folder, in the place of an earlier one, or nothing.

    `merged` loads with `AutoModelForCausalLM.from_pretrained`; `adapter` with peft's `AutoPeftModelForCausalLM`.
    Merging dissolves the adapters into the weights: `merged` comes last.

    Args:
        backbone: The trained model.
        config: The run.
        kind: `adapter` or `merged`.
        results: Figures for the model card, see `jobs.run_end`.

    Returns:
        The folder written.
    """
    folder = export_folder(config, kind)
    model = backbone.model
    if kind == "merged" and isinstance(model, PeftModel):
        model = model.merge_and_unload()
    with atomic_folder(folder) as unfinished:
        _save_model(unfinished, kind, model, backbone, config)
        base = {"base": base_fingerprint(model)} if kind == "adapter" else {}
        write_json_atomic(unfinished / SETTINGS_FILE, _settings(config) | base)
        write_text_atomic(unfinished / "README.md", model_card(config, kind, results))
    return folder


def _save_model(folder: Path, kind: str, model: Any, backbone: Backbone, config: GraceConfig) -> None:
    """Weights, tokenizer, and what sentence-transformers reads."""
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
        "mode": "prompt_only" if config.method.prompt_only else "rationale",
        "backbone": asdict(replace(config.backbone, path=_found_from_anywhere(config.backbone.path))),
        "seed": config.seed,
    }


def _found_from_anywhere(path: str | None) -> str | None:
    """The path of a local model made absolute; a hub name stays."""
    local = path is not None and Path(path).expanduser().is_dir()
    return str(Path(path).expanduser().resolve()) if local and path is not None else path


def _name_base(file: Path) -> None:
    """Write the base model into peft's settings as it is found from any folder."""
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = _found_from_anywhere(settings.get("base_model_name_or_path"))
    write_json_atomic(file, settings)


_METHODS = {
    "grace": "GRACE (arXiv 2510.04506): it reads a text and writes a rationale.",
    "contrastive": "InfoNCE on texts without rationales, a baseline of GRACE (arXiv 2510.04506).",
    "simcse": "SimCSE (arXiv 2104.08821) on texts without rationales, a baseline of GRACE (arXiv 2510.04506).",
    "contrastive_on_rationales": "InfoNCE on texts with rationales, a baseline of GRACE (arXiv 2510.04506). The "
    "rationales are the base model's: it reads them, and is not meant to write them.",
    "rejection_sft": "cross-entropy on its best-rewarded rationales, a baseline of GRACE (arXiv 2510.04506): it reads "
    "a text and writes a rationale.",
}


def _region(config: GraceConfig) -> str:
    return "text" if config.method.prompt_only else config.backbone.pooling.region


def _recipe(config: GraceConfig) -> list[str]:
    """What the model card says of reward, objective and rationales."""
    rollout, method = config.rollout, config.method
    sampled = f"up to {rollout.max_tokens} tokens"
    if method.name == "grace":
        what = f"reward: {config.reward.name}; objective: {config.objective.name}; K = {rollout.group_size}, {sampled}"
    elif method.name == "rejection_sft":
        what = f"reward: {config.reward.name}; the best of {rollout.group_size} rationales, {sampled}"
    else:
        what = f"temperature {method.temperature}, {config.objective.mini_batch_size} instances an update"
        what += f"; rationales of {sampled}" if method.name == "contrastive_on_rationales" else ""
        what += f"; attention dropout {method.dropout}" if method.name == "simcse" else ""
    return [f"- {what}"]


def model_card(config: GraceConfig, kind: str, results: dict[str, Any]) -> str:
    """A README with front matter that hubs read."""
    pooling = config.backbone.pooling
    base = {"embedded": "HuggingFaceTB/SmolLM2-135M-Instruct", "tiny": None}.get(
        config.backbone.source, config.backbone.path
    )
    header = [
        "---",
        *([f"base_model: {base}"] if base else []),
        "library_name: " + ("peft" if kind == "adapter" else "transformers"),
    ]
    header += [
        "pipeline_tag: feature-extraction",
        "tags:",
        "- grace-exp",
        "- text-embedding",
        "- reinforcement-learning",
        "---",
    ]
    loader = "peft import AutoPeftModelForCausalLM" if kind == "adapter" else "transformers import AutoModelForCausalLM"
    figures = [
        f"| {name} | {row.get('before', '')} | {row.get('after', '')} | {row.get('prompt_only_after', '')} |"
        for name, row in results.get("table", {}).items()
    ]
    table = (
        ["## Held-out figures", "", "| set | before | after | prompt only, after |", "|---|---|---|---|", *figures, ""]
        if figures
        else []
    )
    return "\n".join(
        [
            *header,
            "",
            f"# {config.name}",
            "",
            f"{config.backbone.name} trained with {_METHODS[config.method.name]}",
            f"The pooled hidden states of `{_region(config)}` ({pooling.method}, layer {pooling.layer}) are its "
            "embedding.",
            "",
            f"- data: {config.data.name} ({config.data.mode}), {config.job.steps} steps of {config.job.batch_size} "
            f"instances, seed {config.seed}",
            *_recipe(config),
            f"- system prompt: {json.dumps(config.prompt.system, ensure_ascii=False)}",
            "",
            *table,
            "## Use",
            "",
            "```python",
            f"from {loader}",
            "",
            f'model = {loader.split()[-1]}.from_pretrained("{kind}")',
            "```",
            "",
            f"Prompt, pooling and rationale budget are in `{SETTINGS_FILE}`.",
            "",
        ]
    )
