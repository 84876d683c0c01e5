"""Prompt-only models as sentence-transformers' own modules: they load anywhere, without this package.

The chat template moves into the tokenizer, whose post-processor puts head and tail around the text. Pooling must leave
out the system prompt. So its tokens get separate ids, with copies of their rows in the embedding, and `WordWeights`
gives these ids the weight 0.
"""

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from grace_exp.config.backbone import PoolingConfig
from grace_exp.data.batch import Role
from grace_exp.data.prompts import PromptBuilder
from grace_exp.encoder.pretrained import TOKENIZER_FOLDER
from grace_exp.encoder.pretrained_folder import MODULE_FILE, MODULES_FILE, write_sentence_config
from grace_exp.tracking.summary import write_json_atomic

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_CENTERING = "_Centering"
_POOLING = {"mean": "mean", "last": "lasttoken"}


def fits_stock_modules(builder: PromptBuilder, pooling: PoolingConfig, layers: int) -> bool:
    """Whether stock modules can compute the prompt-only embedding: one prompt for all roles, and the last layer.

    Args:
        builder: Builds the prompts.
        pooling: Pooling of the embedding.
        layers: Number of layers of the model.
    """
    frames = {builder.frame(role) for role in Role}
    return len(frames) == 1 and pooling.method in _POOLING and pooling.layer in (-1, layers)


def save_stock(
    folder: Path,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    builder: PromptBuilder,
    pooling: PoolingConfig,
    max_tokens: int,
) -> None:
    """Write weights, tokenizer and modules; `GraceEncoder` finds its own tokenizer in a subfolder.

    Args:
        folder: The folder.
        model: The model without adapters.
        tokenizer: The model's tokenizer.
        builder: A builder that passes `fits_stock_modules`.
        pooling: Pooling of the embedding.
        max_tokens: Limit of a whole prompt; the text is cut to fit.
    """
    head, tail, pool_start = builder.frame(Role.QUERY)
    weighted = pool_start if pooling.method == "mean" else 0
    with _copied_rows(model, head[:weighted]) as first_copy:
        model.save_pretrained(str(folder))
    copies = tuple(range(first_copy, first_copy + weighted))
    tokenizer.save_pretrained(str(folder / TOKENIZER_FOLDER))
    _template_tokenizer(tokenizer, (*copies, *head[weighted:]), tail, max_tokens).save_pretrained(str(folder))
    modules = [("", "Transformer")]
    # AutoTokenizer would rebuild some models' tokenizers without our template. This class loads the file unchanged.
    settings = {"max_seq_length": max_tokens, "do_lower_case": False, "tokenizer_args": {"tokenizer_type": "olmo2"}}
    write_json_atomic(folder / "sentence_bert_config.json", settings)
    if weighted:
        modules.append(("1_WordWeights", "WordWeights"))
        _write_weights(folder / "1_WordWeights", first_copy + weighted, copies)
    modules.append((f"{len(modules)}_Pooling", "Pooling"))
    place = folder / modules[-1][0]
    place.mkdir(exist_ok=True)
    hidden = model.config.get_text_config().hidden_size
    write_json_atomic(
        place / "config.json", {"word_embedding_dimension": hidden, "pooling_mode": _POOLING[pooling.method]}
    )
    records = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(modules)
    ]
    write_json_atomic(folder / MODULES_FILE, records)
    write_sentence_config(folder, {})


def is_stock(folder: Path) -> bool:
    """Whether sentence-transformers loads a folder with its own modules only."""
    return (folder / MODULES_FILE).is_file() and not (folder / MODULE_FILE).is_file()


def write_centering(folder: Path, mean: NDArray[np.float32]) -> None:
    """Append a module to a folder of stock modules that subtracts a mean: a linear layer, the identity minus the mean.

    Args:
        folder: A folder written by `save_stock`; a mean of an earlier call is replaced.
        mean: [hidden].
    """
    from safetensors.torch import save_file

    path = folder / MODULES_FILE
    records = [
        module for module in json.loads(path.read_text(encoding="utf-8")) if not module["path"].endswith(_CENTERING)
    ]
    place = f"{len(records)}{_CENTERING}"
    (folder / place).mkdir(exist_ok=True)
    hidden = len(mean)
    layer = {"in_features": hidden, "out_features": hidden, "bias": True}
    identity = "torch.nn.modules.linear.Identity"
    write_json_atomic(folder / place / "config.json", {**layer, "activation_function": identity})
    weights = {"linear.weight": torch.eye(hidden), "linear.bias": -torch.from_numpy(np.array(mean, np.float32))}
    save_file(weights, str(folder / place / "model.safetensors"))
    number = len(records)
    kind = "sentence_transformers.models.Dense"
    write_json_atomic(path, [*records, {"idx": number, "name": str(number), "path": place, "type": kind}])


@contextmanager
def _copied_rows(model: "PreTrainedModel", ids: tuple[int, ...]) -> Iterator[int]:
    """Append copies of the rows `ids` to the embedding inside the block; give the id of the first copy."""
    embedding: Any = model.get_input_embeddings()
    rows = int(embedding.weight.shape[0])
    if not ids:
        yield rows
        return
    model.resize_token_embeddings(rows + len(ids), mean_resizing=False)
    try:
        with torch.no_grad():
            for module in (model.get_input_embeddings(), model.get_output_embeddings()):
                weight: Any = module.weight
                weight[rows:] = weight[list(ids)]
        yield rows
    finally:
        model.resize_token_embeddings(rows)


def _template_tokenizer(
    tokenizer: "PreTrainedTokenizerBase", head: tuple[int, ...], tail: tuple[int, ...], max_tokens: int
) -> "PreTrainedTokenizerBase":
    """Return a tokenizer whose `__call__` gives head + text + tail, as `PromptBuilder` does."""
    from tokenizers import normalizers, processors
    from transformers import PreTrainedTokenizerFast

    backend: Any = copy.deepcopy(getattr(tokenizer, "backend_tokenizer"))  # noqa: B009 - not every class has it
    strip = normalizers.Strip()
    backend.normalizer = normalizers.Sequence([strip, backend.normalizer]) if backend.normalizer else strip
    parts = [
        {"id": name, "ids": list(ids), "tokens": [f"{name}{number}" for number in range(len(ids))]}
        for name, ids in (("head", head), ("tail", tail))
        if ids
    ]
    names = [part["id"] for part in parts]
    single = " ".join([*(["head"] if "head" in names else []), "$A", *(["tail"] if "tail" in names else [])])
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=parts)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=tokenizer.eos_token,
        pad_token=tokenizer.pad_token or tokenizer.eos_token,
        padding_side="right",
        model_max_length=max_tokens,
        split_special_tokens=True,
    )


def _write_weights(folder: Path, rows: int, zeros: tuple[int, ...]) -> None:
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    weights = torch.ones(rows, 1)
    weights[list(zeros)] = 0
    names = [str(number) for number in range(rows)]
    settings = {"vocab": names, "word_weights": {str(number): 0.0 for number in zeros}, "unknown_word_weight": 1.0}
    write_json_atomic(folder / "config.json", settings)
    save_file({"emb_layer.weight": weights}, str(folder / "model.safetensors"))
