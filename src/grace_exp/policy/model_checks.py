"""Check before a model's weights are loaded that it can be read, trained and exported with these settings."""

import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

from grace_exp.config.backbone import BackboneConfig, LoraConfig
from grace_exp.errors import ConfigError

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

_WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
"""Layer types that attend to a part of the earlier tokens, and the setting with its length."""
_MARK = "grace\u2403exp"


class BackboneWarning(UserWarning):
    """A model can be trained, but perhaps not as intended."""


def check_attention(config: "PretrainedConfig", name: str, longest: int | None) -> None:
    """Refuse a model in which a token does not attend to all tokens before it.

    Packed rows, prompts that are read once for several rationales, and padded prompts rely on that. A window longer
    than every sequence has no effect and is allowed.

    Args:
        config: The model's configuration.
        name: Name of the model in the message.
        longest: Tokens of the longest prompt and rationale; None: not known, and any window is allowed.

    Raises:
        ConfigError: The model attends in another way; the message says which.
    """
    text: Any = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    if kinds == {"full_attention"} and getattr(text, "layer_types", None) is None:
        window = getattr(text, "sliding_window", None)
        kinds = {"sliding_attention"} if window and getattr(text, "use_sliding_window", True) else kinds
    for kind in sorted(kinds - {"full_attention"}):
        window = getattr(text, _WINDOWS.get(kind, ""), None)
        if kind not in _WINDOWS:
            raise ConfigError(
                f"backbone {name!r} ({text.model_type}) has layers of type {kind!r}: only causal attention is supported"
            )
        if window and longest is not None and longest > window:
            raise ConfigError(
                f"backbone {name!r} ({text.model_type}) has layers that see {window} tokens back ({_WINDOWS[kind]}), "
                f"fewer than the {longest} of the longest prompt and rationale: lower prompt.max_tokens and "
                "rollout.max_tokens, or choose another backbone"
            )
    if getattr(text, "alibi", False) or text.model_type in ("bloom", "mpt"):
        raise ConfigError(
            f"backbone {name!r} ({text.model_type}) adds distances to its attention (ALiBi): only models that "
            "read positions are supported"
        )
    if config.is_encoder_decoder or hasattr(text, "state_size"):
        raise ConfigError(
            f"backbone {name!r} ({text.model_type}) is not a decoder with causal attention in every layer"
        )


class Longest(NamedTuple):
    """The longest prompt plus rationale: its tokens, and the settings that they come from, in words."""

    tokens: int
    made_of: str


def check_positions(config: "PretrainedConfig", name: str, longest: Longest) -> None:
    """Refuse sequences that are longer than the model's positions.

    Beyond them a model with learned positions fails, and other models compute what they were not trained for.

    Args:
        config: The model's configuration.
        name: Name of the model in the message.
        longest: The longest sequence it will read.

    Raises:
        ConfigError: The sequence is too long.
    """
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and limit > 0 and longest.tokens > limit:
        raise ConfigError(f"{longest.made_of} = {longest.tokens} tokens, but {name} reads {limit}: lower one of them")


def check_shared_weights(config: BackboneConfig, lora: LoraConfig, model_config: "PretrainedConfig") -> None:
    """Refuse adapters on weights that two modules share (tied embeddings and output head).

    An adapter belongs to one module. Merged into the shared weight it would act in both, so the exported model would
    compute something else than the trained one.

    Raises:
        ConfigError: The message names the module and what it shares its weight with.
    """
    if isinstance(lora.target_modules, str) and lora.target_modules == "all-linear":
        return  # all-linear leaves out the head and the embeddings
    import torch
    from peft import LoraConfig as PeftLoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(model_config)
    wanted = PeftLoraConfig(target_modules=lora.target_modules)
    owners: dict[int, list[str]] = {}
    for name, module in skeleton.named_modules():
        if isinstance(getattr(module, "weight", None), torch.nn.Parameter):
            owners.setdefault(id(module.weight), []).append(name)
    for names in owners.values():
        adapted = [name for name in names if check_target_module_exists(wanted, name)]
        if len(names) > 1 and adapted:
            others = " and ".join(name for name in names if name != adapted[0])
            raise ConfigError(
                f"backbone.lora.target_modules={lora.target_modules!r} puts an adapter on {adapted[0]}, which "
                f"shares its weight with {others} in {config.name}: leave it out, as "
                "backbone.lora.target_modules=all-linear does"
            )


def exportable(generation: "GenerationConfig") -> "GenerationConfig":
    """Return a model's generation settings without contradictory ones, which transformers refuses to save.

    A setting is kept if it is valid together with those kept before; the kind of search comes first, then its numbers.
    """
    from transformers import GenerationConfig

    settings = generation.to_diff_dict()
    first = [key for key in ("do_sample", "num_beams", "return_dict_in_generate") if key in settings]
    kept = GenerationConfig()
    for key in [*first, *(key for key in settings if key not in first)]:
        before = getattr(kept, key, None)
        setattr(kept, key, settings[key])
        if not _is_valid(kept):
            setattr(kept, key, before)
    return kept


def existing_pad(pad: int | None, ends: tuple[int, ...], rows: int) -> int:
    """Return a padding id that has an embedding; padding is masked, so any id will do.

    Args:
        pad: The tokenizer's padding id.
        ends: End tokens.
        rows: Number of embeddings.
    """
    return next((token for token in (pad, *ends) if token is not None and 0 <= token < rows), 0)


def check_template_tokens(tokenizer: "PreTrainedTokenizerBase", ends: tuple[int, ...], name: str, rows: int) -> None:
    """Check the tokens that the chat template puts around a user's text.

    Warn if the token that ends a turn is not an end token: rationales would then run on to their limit.

    Raises:
        ConfigError: The template uses tokens without embeddings.
    """
    try:
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": _MARK}], tokenize=False, add_generation_prompt=True
        )
        head, tail = str(rendered).split(_MARK)
    except Exception:  # of any kind; `PromptBuilder`, which needs the template, reports what is wrong with it
        return
    ids: list[int] = tokenizer(head + tail, add_special_tokens=False)["input_ids"]
    beyond = [token for token in ids if token >= rows]
    if beyond:
        spelled = tokenizer.convert_ids_to_tokens(beyond[0])
        raise ConfigError(
            f"backbone {name!r}: its chat template uses {spelled!r} (id {beyond[0]}), but the model has {rows} "
            "embeddings: resize them (model.resize_token_embeddings) and save the model again"
        )
    turn_end: list[int] = tokenizer(tail, add_special_tokens=False)["input_ids"][:1]
    if turn_end and turn_end[0] in tokenizer.get_added_vocab().values() and turn_end[0] not in ends:
        warnings.warn(
            f"backbone {name!r}: its chat template ends a turn with {tokenizer.convert_ids_to_tokens(turn_end[0])!r} "
            f"(id {turn_end[0]}), which is not one of its end tokens {list(ends)}: rationales may run on to "
            "rollout.max_tokens. Add it to eos_token_id in generation_config.json",
            BackboneWarning,
            stacklevel=2,
        )


def _is_valid(generation: "GenerationConfig") -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            generation.validate(strict=True)
        except (ValueError, TypeError):
            return False
    return True
