"""A model's dimensions, and the sizes computed from them."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grace_exp.config.backbone import BackboneConfig, LoraConfig, ShapeConfig
from grace_exp.errors import MissingResourceError
from grace_exp.rollout.vllm.memory import ModelShape

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True, slots=True)
class Dimensions:
    """A decoder with gated feed-forward layers (Llama, Qwen2, Qwen3), and its adapters.

    Attributes:
        shape: The model's shape.
        lora: The trained adapters; None: every weight is trained.
    """

    shape: ShapeConfig
    lora: LoraConfig | None

    @property
    def query_width(self) -> int:
        """Width of all query heads together."""
        return self.shape.heads * self.shape.head_dim

    @property
    def key_width(self) -> int:
        """Width of all key heads together; values have the same."""
        return self.shape.kv_heads * self.shape.head_dim

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """Input and output width of each matrix of a layer."""
        shape = self.shape
        return {
            "q_proj": (shape.hidden, self.query_width),
            "k_proj": (shape.hidden, self.key_width),
            "v_proj": (shape.hidden, self.key_width),
            "o_proj": (self.query_width, shape.hidden),
            "gate_proj": (shape.hidden, shape.intermediate),
            "up_proj": (shape.hidden, shape.intermediate),
            "down_proj": (shape.intermediate, shape.hidden),
        }

    @property
    def layer_matrices(self) -> int:
        """Number of weights in a layer's matrices."""
        return sum(rows * columns for rows, columns in self.linear.values())

    @property
    def layer(self) -> int:
        """Number of weights of a layer."""
        shape = self.shape
        biases = (self.query_width + 2 * self.key_width) * shape.qkv_bias
        norms = 2 * shape.hidden + 2 * shape.head_dim * shape.qk_norm
        return self.layer_matrices + biases + norms

    @property
    def embedding(self) -> int:
        """Number of weights of the input embedding; an output head has as many."""
        return self.shape.vocabulary * self.shape.hidden

    @property
    def parameters(self) -> int:
        """Number of weights without adapters."""
        outside = self.embedding * (1 if self.shape.tied else 2) + self.shape.hidden
        return self.shape.layers * self.layer + outside

    @property
    def adapted(self) -> list[str]:
        """Names of a layer's matrices with adapters."""
        if self.lora is None:
            return []
        chosen = self.lora.target_modules
        if isinstance(chosen, str):
            return list(self.linear)  # all-linear; a pattern counts as all
        return [name for name in self.linear if name in chosen]

    @property
    def adapters(self) -> int:
        """Number of weights of the adapters."""
        rank = self.lora.rank if self.lora is not None else 0
        return self.shape.layers * rank * sum(sum(self.linear[name]) for name in self.adapted)

    @property
    def trained(self) -> int:
        """Number of weights with a gradient and optimizer state."""
        return self.parameters if self.lora is None else self.adapters

    def engine_shape(self) -> ModelShape:
        """Return the shape on which a vLLM engine's memory depends."""
        shape = self.shape
        return ModelShape(
            parameters=self.parameters,
            trained=self.trained,
            layers=shape.layers,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            hidden=shape.hidden,
            intermediate=shape.intermediate,
            vocabulary=shape.vocabulary,
        )


def planned_dimensions(backbone: BackboneConfig) -> Dimensions:
    """Return the dimensions of the configured backbone, without loading it.

    Raises:
        MissingResourceError: The settings have no shape, and its config.json cannot be read.
    """
    shape = backbone.shape
    if shape is None or (backbone.source == "hub" and shape.path != backbone.path):
        shape = _read_shape(backbone)
    return Dimensions(shape, backbone.lora)


def dimensions_of(config: "PretrainedConfig", lora: LoraConfig | None) -> Dimensions | None:
    """Return the dimensions from a model's configuration; None if it uses other names."""
    text: Any = config.get_text_config()
    needed = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    if not all(isinstance(getattr(text, name, None), int) for name in needed):
        return None
    heads, kind = text.num_attention_heads, str(text.model_type)
    shape = ShapeConfig(
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        vocabulary=text.vocab_size,
        tied=bool(text.tie_word_embeddings),
        qkv_bias=kind.startswith("qwen2") or bool(getattr(text, "attention_bias", False)),
        qk_norm=kind.startswith("qwen3"),
    )
    return Dimensions(shape, lora)


def _read_shape(backbone: BackboneConfig) -> ShapeConfig:
    from transformers import AutoConfig

    if backbone.source == "tiny":
        from grace_exp.policy.tiny import tiny_model

        tiny = dimensions_of(tiny_model(0).config, None)
        assert tiny is not None
        return tiny.shape
    path = backbone.path or ""
    try:
        config = AutoConfig.from_pretrained(str(Path(path).expanduser()), revision=backbone.revision or "main")
        if (found := dimensions_of(config, None)) is None:
            raise ValueError(f"models of type {config.model_type} name their figures in another way")
    except (OSError, ValueError) as error:
        raise MissingResourceError(
            f"the shape of backbone {backbone.name!r} is unknown: backbone.shape is "
            f"{'null' if backbone.shape is None else f'that of {backbone.shape.path}'}, and the config.json of "
            f"backbone.path={path} cannot be read ({str(error).splitlines()[0].rstrip('.')}). Give a local folder, or "
            "the figures themselves: backbone.shape.path, .layers, .hidden, .intermediate, .heads, .kv_heads, "
            ".head_dim, .vocabulary, .tied, .qkv_bias, .qk_norm"
        ) from error
    return found.shape
