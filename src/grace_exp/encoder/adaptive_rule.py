"""The rule of `mode=adaptive`: it chooses the texts that get a rationale by their prompt-only embeddings."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from grace_exp.config.advice import override
from grace_exp.config.base import STRICT
from grace_exp.data.batch import Role
from grace_exp.errors import ConfigError
from grace_exp.tracking.summary import write_json_atomic

RULE_FILE = "adaptive_rule.json"
"""The rule's file beside exported weights."""

FIT_COMMAND = "python -m grace_exp job=fit_adaptive {model} job.input=pairs.jsonl"


@dataclass(config=STRICT, frozen=True, kw_only=True)
class AdaptiveRule:
    """A logistic regression on the prompt-only embedding e of a text.

    Its probability that a rationale helps is `sigmoid(weights . e/|e| + log_norm * log|e| + document + bias)`, where
    `document` is added only for documents.

    Attributes:
        weights: Weights of the embedding's direction, [hidden].
        log_norm: Weight of the logarithm of its length.
        document: Added for documents.
        bias: Added for all texts.
        threshold: Lowest probability at which a text gets a rationale.
    """

    weights: tuple[float, ...]
    log_norm: float
    document: float
    bias: float
    threshold: float

    def probabilities(self, embeddings: NDArray[np.float32], role: Role) -> NDArray[np.float64]:
        """Return for each text the probability that a rationale helps.

        Args:
            embeddings: Prompt-only embeddings, [texts, hidden], of full length and not normalised.
            role: Role of the texts.
        """
        scores = features(embeddings, role) @ np.array([*self.weights, self.log_norm, self.document]) + self.bias
        found: NDArray[np.float64] = 0.5 * (1 + np.tanh(0.5 * scores))  # the sigmoid, in a form that does not overflow
        return found

    def writes(self, embeddings: NDArray[np.float32], role: Role) -> NDArray[np.bool_]:
        """Return which texts get a rationale; the arguments are those of `probabilities`."""
        return self.probabilities(embeddings, role) >= self.threshold


def features(embeddings: NDArray[np.float32], role: Role) -> NDArray[np.float64]:
    """Return the rule's input, [texts, hidden + 2]: direction, logarithm of the length, 1 for documents."""
    wide = embeddings.astype(np.float64)
    length = np.linalg.norm(wide, axis=1, keepdims=True)
    document = np.full_like(length, float(role != Role.QUERY))
    return np.concatenate([wide / length, np.log(length), document], axis=1)


def read_rule(folder: Path) -> AdaptiveRule | None:
    """Return the rule beside a model; None if there is none.

    Raises:
        ConfigError: The rule's file is damaged.
    """
    path = folder / RULE_FILE
    if not path.is_file():
        return None
    try:
        return TypeAdapter(AdaptiveRule).validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        command = FIT_COMMAND.format(model=override("job.model", folder))
        raise ConfigError(f"{path}: {where}: {first['msg']}; fit it again: {command}") from error


def write_rule(folder: Path, rule: AdaptiveRule) -> Path:
    """Write a rule beside a model, and return its file."""
    write_json_atomic(folder / RULE_FILE, asdict(rule))
    return folder / RULE_FILE


def required_rule(rule: AdaptiveRule | None, model: str, hidden: int | None = None) -> AdaptiveRule:
    """Return the rule that `mode=adaptive` needs.

    Args:
        rule: The model's rule, if it has one.
        model: The model's name, for the message.
        hidden: Length of the model's embeddings; None: not checked.

    Raises:
        ConfigError: The model has no rule, or the rule of another model.
    """
    command = FIT_COMMAND.format(model=override("job.model", model))
    if rule is None:
        raise ConfigError(
            f"mode=adaptive: {model} has no {RULE_FILE}, which says to which texts a rationale is written (nor has a "
            f"model whose prompt or pooling was replaced): fit it on held-out pairs: {command}"
        )
    if hidden is not None and len(rule.weights) != hidden:
        raise ConfigError(
            f"mode=adaptive: the {RULE_FILE} of {model} is for embeddings of {len(rule.weights)} numbers, and the "
            f"model's have {hidden}: fit it again: {command}"
        )
    return rule
