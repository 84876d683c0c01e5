"""How rewards become a loss."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from grace_exp.config.base import STRICT
from grace_exp.config.own_parts import ModulePath, Name
from grace_exp.config.pathwise import PathwiseConfig
from grace_exp.config.require import requirements


@dataclass(config=STRICT, frozen=True, kw_only=True)
class KlConfig:
    """A penalty on the divergence from the reference model."""

    coefficient: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the penalty; 0: the reference model is neither loaded nor run."""
    estimator: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of KL(policy || reference) from samples of the policy (Schulman,
    http://joschu.net/blog/kl-approx.html)."""
    placement: Literal["loss", "reward"] = "loss"
    """loss: added per token; reward: summed over the rationale and subtracted from its reward before the advantage."""
    anchor: Literal["reference", "behaviour"] = "reference"
    """The model that the penalty compares with: the initial model, or (copg only, needs no second model) the policy
    that wrote the text."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class ImportanceConfig:
    """Truncated importance sampling for an engine whose probabilities are not exactly the trainer's."""

    mode: Literal["none", "token", "sequence"] = "none"
    """What the surrogate is weighted by: min(cap, trainer / engine probability), of each token or of the whole
    rationale.
    conf/ sets token if the engine computes in lower precision than the trainer, or writes a step ahead
    (`importance_mode`)."""
    cap: Annotated[float, Field(ge=1)] = 2.0
    """The cap: the largest weight."""
    warn_below: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Warn once when `mismatch/ess_sequence`, the effective share of the rationales, falls below this; 0: never. It is
    small for long rationales even if single tokens differ little, because their ratio is the product over all
    tokens."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class OverlongConfig:
    """A penalty that grows near the length limit of rationales (DAPO, arXiv 2503.14476, equation 13)."""

    share: Annotated[float, Field(gt=0, le=1)] = 0.2
    """The last share of rollout.max_tokens; over it the penalty grows from 0 to `penalty`."""
    penalty: Annotated[float, Field(gt=0)] = 1.0
    """The penalty at rollout.max_tokens, subtracted from the reward, in its units."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class DynamicSamplingConfig:
    """Replace groups whose rewards are all equal, because they train nothing (DAPO, arXiv 2503.14476)."""

    max_rounds: Annotated[int, Field(ge=1)] = 3
    """The most extra rounds of sampling in a step; groups without spread that remain after them stay in the batch."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class ReplayConfig:
    """Train again on instances of earlier steps, with the rationales that were written then."""

    capacity: Annotated[int, Field(ge=1)] = 256
    """The most instances kept, over all processes; the oldest are dropped first."""
    share: Annotated[float, Field(gt=0, le=4)] = 0.5
    """Stored instances per new instance of a step; fewer while the store is small."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class CustomObjectiveConfig:
    """Functions that you write for algorithm=custom (docs/extending.md)."""

    path: ModulePath
    """A Python file (my_objective.py, relative to the working directory) or an import path (my_package.objective)."""
    advantages: Name | None = None
    """A function from `AdvantageInputs` and `ObjectiveConfig` to advantages [groups, K]; null: GRPO's."""
    loss: Name | None = None
    """A function from `LossInputs` and `ObjectiveConfig` to the summed loss and a dict of metrics; null: GRPO's."""

    @model_validator(mode="after")
    def _names_a_function(self) -> Self:
        if self.advantages is None and self.loss is None:
            raise ValueError("objective.custom names no function: give advantages, loss, or both")
        return self


@dataclass(config=STRICT, frozen=True, kw_only=True)
class ObjectiveConfig:
    """The policy gradient with its baseline, and the reward's gradient through the embeddings."""

    name: Annotated[str, Field(min_length=1)] = "grpo"
    """Name of this choice of `objective=`."""
    algorithm: Literal[
        "grpo", "dr_grpo", "dapo", "gspo", "rloo", "reinforce_pp", "reinforce_pp_baseline", "remax", "copg", "custom"
    ] = "grpo"
    """Baseline and loss. `custom`: functions that you write and name in `objective.custom`. Formulas and sources of the
    others are in docs/objectives.md and grace_exp/objective/<algorithm>.py."""
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Lower clip of the probability ratio: see clip_high."""
    clip_high: Annotated[float, Field(gt=0)] = 0.2
    """The probability ratio is clipped to [1 - clip_low, 1 + clip_high]; rloo, remax and copg have no ratio."""
    advantage_scale: Literal["none", "group_std", "batch_std"] = "none"
    """What the reward minus its baseline is divided by: nothing (paper), or its root mean square in the group or the
    batch. copg does not use it, because its beta has the reward's unit."""
    aggregation: Literal["token_mean", "sequence_mean", "constant"] = "token_mean"
    """How token losses become one number. token_mean: the mean over tokens (paper); sequence_mean: the mean over
    rationales of their means; constant: the sum divided by rationales x `length_normalizer`. Each is computed over the
    whole mini-batch: all its micro-batches and processes."""
    length_normalizer: Annotated[int, Field(ge=1)] | None = None
    """Number of tokens, for aggregation=constant; null: rollout.max_tokens."""
    mini_batch_size: Annotated[int, Field(ge=1)] = 16
    """Instances per optimizer update, over all processes."""
    entropy_coefficient: Annotated[float, Field(ge=0)] = 0.0
    """Bonus per token for the entropy of the policy's distribution; 0: the entropy is not computed."""
    policy_gradient_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the policy loss, with its KL penalty and entropy bonus; 0: the pathwise gradient alone."""
    team_credit: Annotated[float, Field(ge=0)] = 0.0
    """Weight of a rationale's effect on the other texts' rewards (to first order: docs/exact_gradient.md), which is
    added to its reward before the advantage. It gives terms like the paper's hard_negative an advantage. 0: as
    published."""
    pathwise: PathwiseConfig = Field(default_factory=PathwiseConfig)
    kl: KlConfig = Field(default_factory=KlConfig)
    importance: ImportanceConfig = Field(default_factory=ImportanceConfig)
    overlong: OverlongConfig | None = None
    """A penalty on long rationales; null: none."""
    dynamic_sampling: DynamicSamplingConfig | None = None
    """Sampling of new groups; null: groups without spread stay in the batch."""
    replay: ReplayConfig | None = None
    """Replay of stored groups, for copg only; null: every group is trained on only in the step that wrote it."""

    custom: CustomObjectiveConfig | None = None
    """Functions for algorithm=custom, e.g. {path: my_objective.py, advantages: my_advantages}."""

    @model_validator(mode="after")
    def _settings_fit_the_algorithm(self) -> Self:
        copg = self.algorithm == "copg"
        with requirements() as require:
            require(
                (self.custom is not None) == (self.algorithm == "custom"),
                f"algorithm={self.algorithm!r} with custom={'null' if self.custom is None else 'set'}: functions of "
                "your own need both; set objective.algorithm=custom and "
                "'objective.custom={path: my_objective.py, advantages: my_advantages}', or objective.custom=null",
            )
            require(
                self.length_normalizer is None or self.aggregation == "constant",
                f"length_normalizer={self.length_normalizer} with aggregation={self.aggregation!r}: only "
                "aggregation='constant' divides by a length; set length_normalizer=null",
            )
            require(
                self.replay is None or copg,
                f"replay is set with algorithm={self.algorithm!r}: only 'copg' is right for stored rationales; set "
                "replay=null",
            )
            require(
                self.kl.anchor == "reference" or copg,
                f"kl.anchor='behaviour' with algorithm={self.algorithm!r}: only 'copg' holds to the behaviour policy; "
                "set objective.kl.anchor=reference",
            )
            require(
                not copg or (self.kl.estimator, self.kl.placement) == ("k1", "reward"),
                f"kl.estimator={self.kl.estimator!r}, kl.placement={self.kl.placement!r} with algorithm='copg': its "
                "penalty is the log-ratio itself; set objective.kl.estimator=k1 objective.kl.placement=reward",
            )
            require(
                not copg or self.importance.mode == "none",
                f"importance.mode={self.importance.mode!r} with algorithm='copg': it needs no importance weights; set "
                "objective.importance.mode=none",
            )
            alone = self.policy_gradient_weight == 0
            require(
                not alone or self.pathwise.weight > 0,
                "policy_gradient_weight=0 with pathwise.weight=0 trains nothing: give one of them a weight above 0",
            )
            require(
                not alone
                or (self.entropy_coefficient == 0 and (self.kl.coefficient == 0 or self.kl.placement == "reward")),
                "policy_gradient_weight=0 leaves out the policy loss, of which entropy_coefficient="
                f"{self.entropy_coefficient} and kl.coefficient={self.kl.coefficient} (kl.placement='loss') are part: "
                "set both to 0",
            )
            require(
                not alone or self.team_credit == 0,
                f"team_credit={self.team_credit} with policy_gradient_weight=0: no advantage is used; set it to 0",
            )
            require(
                not alone or self.replay is None,
                "policy_gradient_weight=0 with replay: stored rationales are there for the policy gradient; set "
                "replay=null",
            )
        return self
