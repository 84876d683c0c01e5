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
"""Inverse strengths of the regularisation, from which the cross-validation chooses."""


@dataclass(frozen=True)
class PairEmbeddings:
    """Embeddings of both sides of pairs in both modes, each [pairs, hidden].

    Attributes:
        queries: Without and with rationale.
        documents: Without and with rationale.
        read: The rule's input: prompt-only embeddings of queries and documents, without any mean removed; None: the
            first ones of both.
    """

    queries: tuple[Vectors, Vectors]
    documents: tuple[Vectors, Vectors]
    read: tuple[Vectors, Vectors] | None = None


@dataclass(frozen=True)
class FittedRule:
    """A rule, and its effect on the texts of folds that it was not fitted on.

    Attributes:
        rule: Fitted on all texts.
        gains: Gain from a rationale for each text, nats; queries first, then documents, in the order of the pairs.
        written: Which texts get a rationale by the rules of the other folds.
    """

    rule: AdaptiveRule
    gains: Numbers
    written: NDArray[np.bool_]

    def worth(self) -> dict[str, float]:
        """Return the mean gain per text over writing no rationale, nats.

        The gain is given for the rule, as many texts drawn at random (`random`), all texts (`always`), and the best
        choice.
        """
        return {
            "rule": float((self.gains * self.written).mean()),
            "random": float(self.gains.mean() * self.written.mean()),
            "always": float(self.gains.mean()),
            "best": float(self.gains.clip(0).mean()),
        }

    def over(self, resamples: int) -> dict[str, tuple[float, float, float]]:
        """Return the rule's mean gain minus that of all texts (`always`) and of none (`never`), with 95 % intervals.

        The intervals come from a bootstrap over pairs.
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
    """Return how much likelier each text picks its partner with a rationale than without, nats [pairs].

    Text i picks partner j with the probability softmax_j(cos(i, j) / temperature). Its gain is the increase of log p(i
    | i) when it gets a rationale, as a mean over partners without and with rationales.

    Args:
        own: Embeddings without and with rationale, [pairs, hidden].
        partners: Embeddings of the partners, without and with rationale.
        temperature: Temperature of the softmax.
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

    The label of a text is whether it gains, and its weight is how much, so that costly mistakes count more. The
    strength of the regularisation is the one whose rules gain most on folds that they were not fitted on. Both texts of
    a pair are in one fold.

    Args:
        embeddings: Embeddings of the pairs.
        settings: Temperature, share and folds.
        seed: Seed of the folds.

    Raises:
        DataError: Fewer texts gain, or lose, than there are folds.
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
    """Return for each fold the rows to fit on and the rows to test on."""
    from sklearn.model_selection import StratifiedGroupKFold

    pairs = np.tile(np.arange(len(helped) // 2), 2)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return list(splitter.split(np.zeros((len(helped), 1)), helped, pairs))


def _unseen(
    inputs: Numbers, gains: Numbers, folds: list[tuple[NDArray[np.int64], NDArray[np.int64]]], penalty: float
) -> Numbers:
    """Return the probabilities by the rules of the other folds, [texts]."""
    found = np.empty(len(gains))
    for seen, rest in folds:
        found[rest] = _regression(inputs[seen], gains[seen], penalty).predict_proba(inputs[rest])[:, 1]
    return found


def _threshold(probabilities: Numbers, share: float | None) -> float:
    return 0.5 if share is None else float(np.quantile(probabilities, 1 - share))


def rule_lines(fitted: FittedRule, tokens: NDArray[np.int64], resamples: int) -> list[str]:
    """Return lines that say what a rule is worth.

    Args:
        fitted: The rule.
        tokens: Number of tokens of each text's rationale, in the order of `FittedRule.gains`.
        resamples: Number of resamples of the bootstrap.
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
