"""Folders of exported models that GRACE, transformers and sentence-transformers load."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grace_exp.config.install import clone_command
from grace_exp.encoder.adaptive_rule import write_rule
from grace_exp.encoder.center import write_center
from grace_exp.encoder.modes import Mode
from grace_exp.encoder.pretrained import SETTINGS_FILE
from grace_exp.tracking.atomic import write_text_atomic
from grace_exp.tracking.summary import write_json_atomic

if TYPE_CHECKING:
    from grace_exp.encoder.encoder import GraceEncoder

MODULE_FILE = "grace_module.py"
MODULES_FILE = "modules.json"
SENTENCE_CONFIG_FILE = "config_sentence_transformers.json"
_MODULE = f'''"""Loads this model into sentence-transformers: the code is that of the installed package grace_exp."""

try:
    from grace_exp.encoder.sentence_module import GraceModule
except ModuleNotFoundError as error:
    if error.name != "grace_exp":
        raise
    raise ImportError(
        "This model writes a rationale to a text before it embeds it. That needs grace-exp, in whose clone this "
        "command installs it: {clone_command()}"
    ) from error

__all__ = ["GraceModule"]
'''


def save_folder(encoder: "GraceEncoder", folder: str | Path) -> None:
    """Write a folder that `GraceEncoder.from_pretrained` and `SentenceTransformer` load: weights, tokenizer, settings.

    Args:
        encoder: The model.
        folder: The folder; created if it does not exist.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    encoder.backbone.model.save_pretrained(str(place))
    encoder.tokenizer.save_pretrained(str(place))
    write_settings(place, encoder, mode=encoder.mode)
    if encoder.center is not None:
        write_center(place, encoder.center, SETTINGS_FILE)
    if encoder.rule is not None:
        write_rule(place, encoder.rule)
    instructions = encoder.prompt.instructions
    write_module(place, {"query": instructions.query, "document": instructions.positive})


def write_settings(folder: Path, encoder: "GraceEncoder", *, mode: Mode) -> None:
    """Write what `GraceEncoder.from_pretrained` reads besides the weights, with the mode of the weights."""
    settings = {
        "prompt": asdict(encoder.prompt),
        "pooling": asdict(replace(encoder.policy.pooling, transform="none")),
        "template_kwargs": encoder.template_kwargs,
        "max_tokens": encoder.max_tokens,
        "mode": mode,
    }
    write_json_atomic(folder / SETTINGS_FILE, settings)


def write_module(folder: Path, prompts: dict[str, str | None]) -> None:
    """Turn a model folder into one of sentence-transformers, whose only module is the encoder.

    sentence-transformers 6 imports modules that are not its own only with `trust_remote_code=True`, also those of
    installed packages. Without it, and without grace-exp, loading fails, so the vectors are never those of another
    model.

    Args:
        folder: A folder with weights, tokenizer and `grace_config.json`.
        prompts: Instructions of the roles `query` and `document`.
    """
    modules = [{"idx": 0, "name": "0", "path": "", "type": f"{Path(MODULE_FILE).stem}.GraceModule"}]
    write_json_atomic(folder / MODULES_FILE, modules)
    write_text_atomic(folder / MODULE_FILE, _MODULE)
    write_sentence_config(folder, prompts)


def write_sentence_config(folder: Path, prompts: dict[str, str | None]) -> None:
    """Write the settings of sentence-transformers: prompts by name, and cosine."""
    settings: dict[str, Any] = {
        "model_type": "SentenceTransformer",
        "prompts": {name: text or "" for name, text in prompts.items()},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }
    write_text_atomic(folder / SENTENCE_CONFIG_FILE, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
