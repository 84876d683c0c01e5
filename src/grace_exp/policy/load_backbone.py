"""Load the model, tokenizer and adapters that `backbone=` names."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grace_exp.config.backbone import BackboneConfig
from grace_exp.errors import ConfigError, MissingResourceError
from grace_exp.policy.model_checks import (
    Longest,
    check_attention,
    check_positions,
    check_shared_weights,
    check_template_tokens,
    existing_pad,
    exportable,
)

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Backbone:
    """A loaded model with its tokenizer and special tokens.

    Attributes:
        model: The language model, wrapped by peft if adapters are trained.
        tokenizer: Its tokenizer, with a chat template.
        end_token_ids: Tokens that end the assistant's turn.
        pad_token_id: Token that fills shorter rows.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    end_token_ids: tuple[int, ...]
    pad_token_id: int


def load_backbone(
    config: BackboneConfig, *, cache_dir: Path, seed: int, dtype: "torch.dtype", longest: Longest | None = None
) -> Backbone:
    """Load (or make) the backbone and add its adapters.

    Args:
        config: The backbone's settings.
        cache_dir: Folder for a converted embedded model.
        seed: Seed of the initial weights of adapters and of the tiny model.
        dtype: Precision of the weights.
        longest: The longest sequence it will read; None: not known.

    Raises:
        MissingResourceError: The model cannot be loaded on this machine.
        ConfigError: The tokenizer has no end token; `lora.target_modules` names nothing in the model, or a module that
            must not be adapted; or the model's attention is not supported.
    """
    import torch

    model, tokenizer = _load(config, cache_dir, seed, dtype, longest)
    embeddings: Any = model.get_input_embeddings()
    rows = int(embeddings.weight.shape[0])
    ends = _end_tokens(model, tokenizer, config.name, rows)
    pad = existing_pad(tokenizer.pad_token_id, ends, rows)
    check_template_tokens(tokenizer, ends, config.name, rows)
    if model.generation_config is not None:
        model.generation_config = exportable(model.generation_config)
    if config.lora is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = _with_lora(model, config)
    if config.gradient_checkpointing != "off":
        from grace_exp.policy.recomputation import checkpointing_arguments

        chosen = checkpointing_arguments(config.gradient_checkpointing)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=chosen)
    return Backbone(model, tokenizer, ends, int(pad))


def _load(
    config: BackboneConfig, cache_dir: Path, seed: int, dtype: "torch.dtype", longest: Longest | None
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    if config.source == "tiny":
        from grace_exp.policy.tiny import tiny_model, tiny_tokenizer

        tiny: Any = tiny_model(seed)
        _check(config, tiny.config, longest)
        tiny.set_attn_implementation(config.attention)
        return tiny.to(dtype), tiny_tokenizer()

    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    if config.source == "embedded":
        from grace_exp.policy.embedded import embedded_smollm2

        path = str(embedded_smollm2(cache_dir))
    else:
        assert config.path is not None  # checked by BackboneConfig
        path = config.path
    try:
        _check(config, AutoConfig.from_pretrained(path, revision=config.revision or "main"), longest)
        tokenizer = AutoTokenizer.from_pretrained(path, revision=config.revision or "main")
        model = AutoModelForCausalLM.from_pretrained(
            path, revision=config.revision or "main", dtype=dtype, attn_implementation=config.attention
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise MissingResourceError(
            f"backbone.path = {path!r} could not be loaded: {str(error).splitlines()[0].rstrip('.')}. "
            "Give a local folder or a hub name that this machine can reach (gated models need `hf auth login`)."
        ) from error
    return model, tokenizer


def load_tokenizer(config: BackboneConfig, cache_dir: Path) -> "PreTrainedTokenizerBase":
    """Return the backbone's tokenizer without loading the model.

    Raises:
        MissingResourceError: It cannot be loaded on this machine.
    """
    if config.source == "tiny":
        from grace_exp.policy.tiny import tiny_tokenizer

        return tiny_tokenizer()
    from transformers import AutoTokenizer

    if config.source == "embedded":
        from grace_exp.policy.embedded import embedded_tokenizer

        return AutoTokenizer.from_pretrained(embedded_tokenizer(cache_dir))
    try:
        return AutoTokenizer.from_pretrained(config.path, revision=config.revision or "main")
    except (OSError, ValueError) as error:
        raise MissingResourceError(
            f"backbone.path = {config.path!r}: its tokenizer could not be loaded: {str(error).splitlines()[0]}"
        ) from error


def _check(config: BackboneConfig, model_config: "PretrainedConfig", longest: Longest | None) -> None:
    """Refuse unsupported models before the weights are read."""
    if longest is not None:
        check_positions(model_config, config.name, longest)
    check_attention(model_config, config.name, longest.tokens if longest is not None else None)
    if config.lora is not None:
        check_shared_weights(config, config.lora, model_config)


def _end_tokens(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", name: str, rows: int
) -> tuple[int, ...]:
    """Return the tokenizer's end token and those of the model's generation settings (Llama 3 has several).

    End tokens beyond the `rows` embeddings cannot be written and are left out.
    """
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    listed = configured if isinstance(configured, list) else [configured]
    tokens = {int(token) for token in [tokenizer.eos_token_id, *listed] if token is not None}
    ends = sorted(token for token in tokens if 0 <= token < rows)
    if not ends:
        raise ConfigError(f"backbone {name!r}: neither tokenizer nor generation config names an end token")
    return tuple(ends)


def _with_lora(model: "PreTrainedModel", config: BackboneConfig) -> "PreTrainedModel":
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model

    lora = config.lora
    assert lora is not None
    try:
        return get_peft_model(  # type: ignore[return-value]
            model,
            PeftLoraConfig(
                r=lora.rank,
                lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft takes floats too
                lora_dropout=lora.dropout,
                target_modules=lora.target_modules,
                task_type="CAUSAL_LM",
            ),
        )
    except ValueError as error:
        raise ConfigError(f"backbone.lora.target_modules = {lora.target_modules!r}: {error}") from error
