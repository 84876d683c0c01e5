"""The rule of mode=adaptive: what it says, how it is fitted, and where it is kept."""

from pathlib import Path

import numpy as np
import pytest

from grace_exp.config.adaptive import AdaptiveConfig
from grace_exp.data.batch import Role
from grace_exp.encoder.adaptive_fit import PairEmbeddings, fit_rule, rationale_gains, rule_lines
from grace_exp.encoder.adaptive_rule import RULE_FILE, AdaptiveRule, features, read_rule, required_rule, write_rule
from grace_exp.errors import ConfigError, DataError

RULE = AdaptiveRule(weights=(2.0, 0.0), log_norm=0.5, document=-1.0, bias=0.25, threshold=0.6)


def test_a_rule_is_a_logistic_regression_on_direction_length_and_role() -> None:
    embeddings = np.array([[3.0, 4.0], [-6.0, 8.0]], dtype=np.float32)
    scores = np.array([2 * 0.6 + 0.5 * np.log(5) + 0.25, -2 * 0.6 + 0.5 * np.log(10) + 0.25])
    np.testing.assert_allclose(RULE.probabilities(embeddings, Role.QUERY), 1 / (1 + np.exp(-scores)), rtol=1e-12)
    np.testing.assert_allclose(RULE.probabilities(embeddings, Role.NEGATIVE), 1 / (1 + np.exp(1 - scores)), rtol=1e-12)
    assert RULE.writes(embeddings, Role.QUERY).tolist() == [True, False]


def test_a_gain_is_the_rise_of_the_partners_log_probability() -> None:
    # Two orthogonal partners. Without a rationale a text lies between them; with one it lies on its own.
    partners = np.eye(2, dtype=np.float32)
    between = np.ones((2, 2), dtype=np.float32)
    found = rationale_gains((between, 7 * partners), (partners, 3 * partners), temperature=0.5)
    np.testing.assert_allclose(found, np.log(2) - np.log1p(np.exp(-2)), rtol=1e-6)
    np.testing.assert_allclose(rationale_gains((between, between), (partners, between), temperature=0.5), 0, atol=1e-12)


def separable(pairs: int, hidden: int = 8) -> tuple[PairEmbeddings, np.ndarray]:
    """Pairs of which a rationale helps a text exactly where the first number of its prompt-only embedding is positive.

    With a rationale a helped text shares more with its partner alone, any other text less.
    """
    generator = np.random.default_rng(0)
    helped = generator.random((2, pairs)) < 0.5
    own = np.eye(pairs, hidden + pairs, hidden)
    sides = []
    for side in helped:
        marks = np.zeros_like(own)
        marks[:, 0] = np.where(side, 1.0, -1.0)
        far, near = marks + 0.2 * own, marks + own
        without = np.where(side[:, None], far, near).astype(np.float32)
        written = np.where(side[:, None], near, far).astype(np.float32)
        sides.append((without, written))
    return PairEmbeddings(*sides), helped.reshape(-1)


def test_a_fitted_rule_finds_what_tells_the_texts_apart() -> None:
    embeddings, helped = separable(40)
    fitted = fit_rule(embeddings, AdaptiveConfig(folds=4), seed=0)
    assert ((fitted.gains > 0) == helped).all()
    assert (fitted.written == helped).all()  # of folds that the rule had not seen
    both = np.concatenate([embeddings.queries[0], embeddings.documents[0]])
    rows = fitted.rule.writes(both[:40], Role.QUERY), fitted.rule.writes(both[40:], Role.POSITIVE)
    assert (np.concatenate(rows) == helped).all()
    worth = fitted.worth()
    assert worth["rule"] == worth["best"] > worth["always"]
    assert worth["random"] == pytest.approx(worth["always"] * helped.mean())
    value, low, high = fitted.over(200)["never"]
    assert 0 < low < value < high
    lines = rule_lines(fitted, np.full(80, 10), 50)
    assert lines[0].endswith(f"{10 * helped.mean():.1f} tokens a text instead of 10.0.")


def test_the_rule_is_that_of_scikit_learn_at_the_chosen_strength() -> None:
    from sklearn.linear_model import LogisticRegression

    generator = np.random.default_rng(1)
    queries, documents = (
        (generator.normal(size=(60, 5)).astype(np.float32), generator.normal(size=(60, 5)).astype(np.float32))
        for _ in range(2)
    )
    fitted = fit_rule(PairEmbeddings(queries, documents), AdaptiveConfig(share=0.3), seed=0)
    assert abs(fitted.written.mean() - 0.3) < 0.02
    inputs = np.concatenate([features(queries[0], Role.QUERY), features(documents[0], Role.POSITIVE)])
    scaled = (inputs - inputs.mean(axis=0)) / inputs.std(axis=0)
    ours = np.concatenate(
        [fitted.rule.probabilities(queries[0], Role.QUERY), fitted.rule.probabilities(documents[0], Role.POSITIVE)]
    )
    weights = np.abs(fitted.gains) / np.abs(fitted.gains).mean()
    theirs = [
        LogisticRegression(C=10.0**power).fit(scaled, fitted.gains > 0, weights).predict_proba(scaled)[:, 1]
        for power in range(-5, 2)
    ]
    assert min(np.abs(ours - one).max() for one in theirs) < 1e-4


def test_where_all_texts_gain_a_rule_is_refused() -> None:
    partners = np.eye(10, dtype=np.float32)
    sides = (np.ones((10, 10), dtype=np.float32), partners)
    with pytest.raises(DataError, match=r"a rationale helps 20 of 20 texts.*use mode=rationale"):
        fit_rule(PairEmbeddings(sides, sides), AdaptiveConfig(), seed=0)


def test_a_rule_is_read_as_it_was_written_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    assert read_rule(tmp_path) is None
    path = write_rule(tmp_path, RULE)
    assert path.name == RULE_FILE and read_rule(tmp_path) == RULE
    path.write_text('{"weights": [1, "x"]}')
    with pytest.raises(ConfigError, match=rf"{RULE_FILE}: weights\.1.*job=fit_adaptive job\.model="):
        read_rule(tmp_path)
    with pytest.raises(ConfigError, match=r"no adaptive_rule\.json.*job=fit_adaptive job\.model=runs/mine"):
        required_rule(None, "runs/mine")
    with pytest.raises(ConfigError, match="for embeddings of 2 numbers, and the model's have 64"):
        required_rule(RULE, "runs/mine", 64)
