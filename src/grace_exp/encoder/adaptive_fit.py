"""Fit the rule of `mode=adaptive` on pairs: a logistic regression on what a rationale gained for each text."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grace_exp.config.adaptive import AdaptiveConfig
from grace_exp.data.batch import Role
from grace_exp.encoder.adaptive_rule import AdaptiveRule, features
from grace_exp.errors import DataError

Vectors = NDArray[np.float32]
Numbers = NDArray[np.float64]

_PENALTIES = tuple(10.0**power for power in range(-5, 2))
"""Inverse strengths of the regularisation that the cross-validation chooses from."""


@dataclass(frozen=True)
class PairEmbeddings:
    """Both sides of pairs in both modes, each [pairs, hidden].

    Attributes:
        queries: Without and with rationale.
        documents: Without and with rationale.
        read: What the rule reads of queries and documents, their prompt-only embeddings without any mean removed; None:
            the first ones of both.
    """

    queries: tuple[Vectors, Vectors]
    documents: tuple[Vectors, Vectors]
    read: tuple[Vectors, Vectors] | None = None


@dataclass(frozen=True)
class FittedRule:
    """A rule, and what it did to the texts of folds that it had not seen.

    Attributes:
        rule: Fitted on all texts.
        gains: What a rationale gains for each text, nats; queries first, then documents, in the order of the pairs.
        written: To which texts the rules of the other folds write.
    """

    rule: AdaptiveRule
    gains: Numbers
    written: NDArray[np.bool_]

    def worth(self) -> dict[str, float]:
        """Mean gain a text over writing none, nats.

        Of the rule, of as many texts drawn at random (`random`), of writing all (`always`) and of the best choice.
        """
        return {
            "rule": float((self.gains * self.written).mean()),
            "random": float(self.gains.mean() * self.written.mean()),
            "always": float(self.gains.mean()),
            "best": float(self.gains.clip(0).mean()),
        }

    def over(self, resamples: int) -> dict[str, tuple[float, float, float]]:
        """The rule's mean gain less that of writing to all (`always`) and to none (`never`), each with 95 % interval.

        Intervals are of a bootstrap over pairs.
        """
        pairs = len(self.gains) // 2
        kept = self.gains * self.written
        found = {}
        for name, other in (("always", self.gains), ("never", np.zeros_like(self.gains))):
            difference = (kept - other).reshape(2, pairs).mean(axis=0)
            generator = np.random.default_rng(0)
            drawn = [difference[generator.integers(pairs, size=pairs)].mean() for _ in range(resamples)]
            low, high = np.percentile(drawn, [2.5, 97.5]) if drawn else (np.nan, np.nan)
            found[name] = (float(difference.mean()), float(low), float(high))
        return found


def rationale_gains(own: tuple[Vectors, Vectors], partners: tuple[Vectors, Vectors], temperature: float) -> Numbers:
    """How much likelier each text picks its partner with a rationale than without, nats [pairs].

    Text i picks partner j with the probability softmax_j(cos(i, j) / temperature). Its gain is the rise of log p(i | i)
    when it gets a rationale, as a mean over partners without rationales and partners with.

    Args:
        own: Embeddings without and with rationale, [pairs, hidden].
        partners: Of the partners, without and with.
        temperature: Of the softmax.
    """
    without, written = (
        np.mean([_log_pick(embeddings, other, temperature) for other in partners], axis=0) for embeddings in own
    )
    gains: Numbers = written - without
    return gains


def _log_pick(own: Vectors, partners: Vectors, temperature: float) -> Numbers:
    left, right = (wide / np.linalg.norm(wide, axis=1, keepdims=True) for wide in map(_wide, (own, partners)))
    scores = left @ right.T / temperature
    top = scores.max(axis=1)
    found: Numbers = scores.diagonal() - top - np.log(np.exp(scores - top[:, None]).sum(axis=1))
    return found


def _wide(vectors: Vectors) -> Numbers:
    return vectors.astype(np.float64)


def fit_rule(embeddings: PairEmbeddings, settings: AdaptiveConfig, seed: int) -> FittedRule:
    """Fit a rule on pairs.

    A text's label is whether it gains, its weight how much: the regression minds costly mistakes more. The strength of
    its regularisation is the one whose rules gain most on the folds that they have not seen; a pair stands in one fold.

    Args:
        embeddings: Of the pairs.
        settings: Temperature, share and folds.
        seed: Of the folds.

    Raises:
        DataError: Fewer than a fold's number of texts gain, or lose.
    """
    gains = np.concatenate(
        [
            rationale_gains(embeddings.queries, embeddings.documents, settings.temperature),
            rationale_gains(embeddings.documents, embeddings.queries, settings.temperature),
        ]
    )
    queries, documents = embeddings.read or (embeddings.queries[0], embeddings.documents[0])
    inputs = np.concatenate([features(queries, Role.QUERY), features(documents, Role.POSITIVE)])
    helped = gains > 0
    if min(helped.sum(), (~helped).sum()) < settings.folds:
        better = "rationale" if helped.mean() > 0.5 else "prompt_only"
        raise DataError(
            f"job.input: a rationale helps {helped.sum()} of {len(gains)} texts, and a rule needs "
            f"{settings.folds} texts (job.adaptive.folds) of either kind: use mode={better}, or give more pairs"
        )
    folds = _folds(helped, settings.folds, seed)
    unseen = {penalty: _unseen(inputs, gains, folds, penalty) for penalty in _PENALTIES}
    thresholds = {penalty: _threshold(found, settings.share) for penalty, found in unseen.items()}
    best = max(_PENALTIES, key=lambda penalty: float((gains * (unseen[penalty] >= thresholds[penalty])).sum()))
    model = _regression(inputs, gains, best)
    scaler, regression = model[0], model[-1]
    slopes = regression.coef_[0] / scaler.scale_
    rule = AdaptiveRule(
        weights=tuple(slopes[:-2].tolist()),
        log_norm=float(slopes[-2]),
        document=float(slopes[-1]),
        bias=float(regression.intercept_[0] - slopes @ scaler.mean_),
        threshold=thresholds[best],
    )
    return FittedRule(rule, gains, unseen[best] >= thresholds[best])


def _regression(inputs: Numbers, gains: Numbers, penalty: float) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model: Any = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=1000))
    weights = np.abs(gains) / np.abs(gains).mean()
    return model.fit(inputs, gains > 0, logisticregression__sample_weight=weights)


def _folds(helped: NDArray[np.bool_], folds: int, seed: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Rows to fit on and rows to look at, per fold."""
    from sklearn.model_selection import StratifiedGroupKFold

    pairs = np.tile(np.arange(len(helped) // 2), 2)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return list(splitter.split(np.zeros((len(helped), 1)), helped, pairs))


def _unseen(
    inputs: Numbers, gains: Numbers, folds: list[tuple[NDArray[np.int64], NDArray[np.int64]]], penalty: float
) -> Numbers:
    """Probabilities by the rule of the other folds, [texts]."""
    found = np.empty(len(gains))
    for seen, rest in folds:
        found[rest] = _regression(inputs[seen], gains[seen], penalty).predict_proba(inputs[rest])[:, 1]
    return found


def _threshold(probabilities: Numbers, share: float | None) -> float:
    return 0.5 if share is None else float(np.quantile(probabilities, 1 - share))


def rule_lines(fitted: FittedRule, tokens: NDArray[np.int64], resamples: int) -> list[str]:
    """What a rule is worth, in lines.

    Args:
        fitted: The rule.
        tokens: Of each text's rationale, in the order of `FittedRule.gains`.
        resamples: Of the bootstrap.
    """
    worth, over = fitted.worth(), fitted.over(resamples)
    share, written = 100 * fitted.written.mean(), (tokens * fitted.written).mean()
    lines = [
        f"On folds that it had not seen, the rule writes to {share:.0f} % of the texts: {written:.1f} tokens a text "
        f"instead of {tokens.mean():.1f}.",
        f"Gain of log p(partner) over writing none, nats a text: {worth['rule']:.3f} (as many texts at "
        f"random: {worth['random']:.3f}; writing all: {worth['always']:.3f}; the best choice: {worth['best']:.3f}).",
    ]
    for name, mode in (("always", "rationale"), ("never", "prompt_only")):
        value, low, high = over[name]
        doubt = "; the interval holds 0" if low <= 0 <= high else ""
        lines.append(f"Against mode={mode}: {value:+.3f} [{low:+.3f}, {high:+.3f}]{doubt}")
        if value <= 0:
            lines.append(f"The rule gains nothing over mode={mode} on these pairs.")
    return lines
