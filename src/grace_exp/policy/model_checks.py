"""What can be said of a model before its weights load: whether it can be read, trained and exported as asked for."""

import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

from grace_exp.config.backbone import BackboneConfig, LoraConfig
from grace_exp.errors import ConfigError

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

_WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
"""Layer types that see part of what is before them, and the setting that says how much."""
_MARK = "grace\u2403exp"


class BackboneWarning(UserWarning):
    """A model can be trained, but perhaps not as it was meant."""


def check_attention(config: "PretrainedConfig", name: str, longest: int | None) -> None:
    """Refuse a model that attends otherwise than every token to all tokens before it.

    Packed rows, prompts read once for several rationales and padded prompts rely on that. A window that no sequence
    fills changes nothing and is allowed.

    Args:
        config: The model's.
        name: For the message.
        longest: Tokens of the longest prompt and rationale; None: not known, and any window is allowed.

    Raises:
        ConfigError: What the model does instead.
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
        raise ConfigError(f"backbone {name!r} ({text.model_type}) is no decoder with causal attention in every layer")


class Longest(NamedTuple):
    """The longest prompt and rationale: tokens, and the settings that give them, in words."""

    tokens: int
    made_of: str


def check_positions(config: "PretrainedConfig", name: str, longest: Longest) -> None:
    """Refuse sequences that are longer than the model's positions.

    Beyond them a model with learned positions fails, and any other computes what it was never trained for.

    Args:
        config: The model's.
        name: For the message.
        longest: What it is to read.

    Raises:
        ConfigError: It is longer.
    """
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and limit > 0 and longest.tokens > limit:
        raise ConfigError(f"{longest.made_of} = {longest.tokens} tokens, but {name} reads {limit}: lower one of them")


def check_shared_weights(config: BackboneConfig, lora: LoraConfig, model_config: "PretrainedConfig") -> None:
    """Refuse adapters on weights that two modules share (tied embeddings and output head).

    An adapter is one module's. Folded into the shared weight it would act in both, so that the exported model would
    compute something else than the trained one.

    Raises:
        ConfigError: Names the module and what it shares its weight with.
    """
    if isinstance(lora.target_modules, str) and lora.target_modules == "all-linear":
        return  # leaves out the head and the embeddings
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
    """A model's generation settings without those that do not hold together, which transformers refuses to save.

    Each setting is kept if it is valid beside the ones before it; the kind of search comes first, then its numbers.
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
    """A padding id that the embeddings have; what stands at padding is masked, so any will do.

    Args:
        pad: The tokenizer's.
        ends: End tokens.
        rows: Of the embeddings.
    """
    return next((token for token in (pad, *ends) if token is not None and 0 <= token < rows), 0)


def check_template_tokens(tokenizer: "PreTrainedTokenizerBase", ends: tuple[int, ...], name: str, rows: int) -> None:
    """Look at the tokens of the chat template around a user's text.

    Warns where the token that ends a turn is no end token: rationales would run on to their limit.

    Raises:
        ConfigError: The template uses tokens that the model has no embeddings for.
    """
    try:
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": _MARK}], tokenize=False, add_generation_prompt=True
        )
        head, tail = str(rendered).split(_MARK)
    except Exception:  # of whatever kind: `PromptBuilder`, which must have the template, says what is wrong with it
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
            f"(id {turn_end[0]}), which is none of its end tokens {list(ends)}: rationales may run on to "
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
