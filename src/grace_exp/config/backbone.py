"""Which language model is trained, how many of its weights, and where its embedding is read."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic.dataclasses import dataclass

from grace_exp.config.base import STRICT


@dataclass(config=STRICT, frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters on the linear layers (peft); without adapters every weight is trained."""

    rank: Annotated[int, Field(ge=1)] = 16
    """Rank of the two matrices of each adapter."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """The update is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on an adapter's input, in training."""
    target_modules: str | list[str] = "all-linear"
    """peft's name for "every linear layer but the output head", or a list of module names."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class PoolingConfig:
    """How hidden states become one embedding (paper, eq. 11: the mean over text and rationale)."""

    region: Literal["text_and_rationale", "rationale", "text"] = "text_and_rationale"
    """`text` is every prompt token after the system prompt, template tokens included."""
    method: Literal["mean", "last", "max"] = "mean"
    """How the region's hidden states become one vector."""
    transform: Literal["none", "center"] = "none"
    """center: an exported model subtracts the mean embedding of a reference sample (job=fit_center sets this in the
    export). Training always uses none."""
    layer: int = -1
    """Which hidden states are pooled: -1 the last layer's after the final norm, -2 the layer before, 0 the input
    embeddings."""


Count = Annotated[int, Field(ge=1)]


@dataclass(config=STRICT, frozen=True, kw_only=True)
class ShapeConfig:
    """Figures of a model's config.json, so that job=plan need not load the model."""

    path: str | None = None
    """The model that these figures describe; they are ignored if `backbone.path` names another model."""
    layers: Count
    """Number of decoder layers."""
    hidden: Count
    """Width of the hidden states."""
    intermediate: Count
    """Width inside the MLP."""
    heads: Count
    """Number of query heads."""
    kv_heads: Count
    """Number of key and value heads."""
    head_dim: Count
    """Width of a head."""
    vocabulary: Count
    """Number of tokens in the embedding matrix."""
    tied: bool = True
    """Whether the output head shares its weights with the input embedding."""
    qkv_bias: bool = False
    """Whether queries, keys and values have a bias."""
    qk_norm: bool = False
    """Whether queries and keys are normalised in every head."""


def _checkpointing_choice(value: object) -> object:
    return {True: "full", False: "off"}[value] if isinstance(value, bool) else value


@dataclass(config=STRICT, frozen=True, kw_only=True)
class BackboneConfig:
    """The instruct model that is the policy."""

    name: Annotated[str, Field(min_length=1)]
    """Short name for tables and run folders."""
    source: Literal["hub", "embedded", "tiny"] = "hub"
    """hub: hub name or local folder; embedded: SmolLM2-135M-Instruct from its PyPI package; tiny: a random model, built
    at the start."""
    path: str | None = None
    """Hub name or local folder (source `hub` only)."""
    revision: str | None = None
    """Hub commit, tag or branch."""
    lora: LoraConfig | None = None
    """LoRA adapters to train; null trains every weight."""
    pooling: PoolingConfig = Field(default_factory=PoolingConfig)
    attention: Literal["sdpa", "eager"] = "sdpa"
    """Attention implementation of transformers."""
    gradient_checkpointing: Annotated[Literal["off", "full", "selective"], BeforeValidator(_checkpointing_choice)] = (
        "off"
    )
    """What the backward pass computes again to save memory. full: every layer. selective: cheap operations only;
    results of matrix products and attention are kept. true means full, false means off.
    """
    shape: ShapeConfig | None = None
    """Figures for `job=plan`; null, or figures of another model than `path`: read from the model's config.json."""
    template_kwargs: dict[str, str | int | bool] = Field(default_factory=dict)
    """Passed to the chat template, e.g. a fixed `date_string` where the template would print today's date."""

    @model_validator(mode="after")
    def _path_fits_source(self) -> Self:
        if (self.source == "hub") != (self.path is not None):
            raise ValueError(
                f"source={self.source!r} with path={self.path!r}: `path` is needed for source 'hub' and only there"
            )
        return self
