"""What is trained: GRACE, or one of the methods it is compared with."""

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from grace_exp.config.base import STRICT

if TYPE_CHECKING:
    from grace_exp.config.root import GraceConfig

_INFONCE = ("contrastive", "simcse", "contrastive_on_rationales")


@dataclass(config=STRICT, frozen=True, kw_only=True)
class MethodConfig:
    """The training method; data, backbone, prompts and pooling are the same for all."""

    name: Literal["grace", "contrastive", "simcse", "contrastive_on_rationales", "rejection_sft"] = "grace"
    """grace: policy gradient on rationales (paper). contrastive: InfoNCE on prompt-only embeddings. simcse: the same
    with dropout positives. contrastive_on_rationales: InfoNCE on texts with rationales that the untrained model writes.
    rejection_sft: cross-entropy on the best-rewarded rationale of each group.
    """
    temperature: Annotated[float, Field(gt=0)] | None = None
    """Divides the cosines of InfoNCE; null for methods without it."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Attention dropout during training, which makes simcse's two views differ; null for other methods."""

    @property
    def is_infonce(self) -> bool:
        """Whether the loss is InfoNCE, on embeddings with gradient: there is no reward."""
        return self.name in _INFONCE

    @property
    def prompt_only(self) -> bool:
        """Whether what is trained is the embedding of a text without a rationale."""
        return self.name in ("contrastive", "simcse")

    @model_validator(mode="after")
    def _has_what_it_reads(self) -> Self:
        if self.is_infonce != (self.temperature is not None):
            raise ValueError(
                f"temperature={self.temperature} with name={self.name!r}: give it for {', '.join(_INFONCE)}, and null "
                "for the others"
            )
        if (self.name == "simcse") != (self.dropout is not None):
            raise ValueError(
                f"dropout={self.dropout} with name={self.name!r}: give it for simcse, and null for the others"
            )
        return self


def method_rules(config: "GraceConfig") -> list[tuple[bool, str]]:
    """What the method asks of the other groups: whether each rule is broken, and what to say then."""
    method, objective, mode = config.method, config.objective, config.data.mode
    name, alone = method.name, config.job.name == "train" and method.is_infonce and objective.mini_batch_size == 1
    kl, lora = objective.kl, config.backbone.lora
    return [
        (
            name == "simcse" and mode != "unsupervised",
            f"method=simcse with data.mode={mode!r}: its positive is the text itself. Choose unsupervised data "
            "(data=wiki1m, stsb_unsup, wordnet_unsup, texts), or method=contrastive",
        ),
        (
            name == "simcse" and method.dropout == 0 and (lora is None or lora.dropout == 0),
            "method=simcse with method.dropout=0 and no backbone.lora.dropout: both views of a text would be equal",
        ),
        (
            name == "contrastive" and mode != "supervised",
            f"method=contrastive with data.mode={mode!r}: its positives are other texts. Choose supervised data "
            "(data=e5, stsb, wordnet, triplets), or method=simcse",
        ),
        (
            name == "contrastive_on_rationales" and mode != "supervised" and config.rollout.anchor_temperature == 0,
            f"method=contrastive_on_rationales with data.mode={mode!r} and rollout.anchor_temperature=0: both "
            "rationales of a text would be equal; sample them",
        ),
        (
            name == "contrastive_on_rationales" and config.backbone.pooling.region == "text",
            "method=contrastive_on_rationales with backbone.pooling.region='text' leaves the rationales out: choose "
            "'text_and_rationale', 'rationale', or method=contrastive",
        ),
        (
            alone and (mode != "supervised" or 0 in config.data.negative_counts()),
            f"method={name} with objective.mini_batch_size=1: without negatives of its own a text is told apart from "
            "the others of its update; take 2 or more",
        ),
        (
            name == "rejection_sft"
            and (
                (kl.coefficient > 0 and (kl.placement == "loss" or objective.algorithm == "copg"))
                or objective.entropy_coefficient > 0
                or objective.replay is not None
            ),
            "method=rejection_sft knows of the objective only what shapes the reward: set objective.kl.coefficient=0 "
            "(or kl.placement=reward), objective.entropy_coefficient=0 and objective.replay=null",
        ),
        (
            name == "rejection_sft" and config.hardware.keep_forward,
            "method=rejection_sft with hardware.keep_forward=true: it trains on one rationale of a group, chosen after "
            "scoring; set hardware.keep_forward=false",
        ),
    ]
