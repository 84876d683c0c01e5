"""Terms without a share in the advantages are named once, with the cause."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from grace_exp.config.reward import (
    HardNegativeConfig,
    LengthConfig,
    NegativeConfig,
    RewardConfig,
    TermConfig,
    TermsConfig,
    TruncationConfig,
)
from grace_exp.reward import InertTerms, RewardInputs, compose_reward

Make = Callable[..., RewardInputs]
PAPER = RewardConfig(
    name="paper",
    terms=TermsConfig(
        positive=TermConfig(),
        negative=NegativeConfig(),
        consistency=TermConfig(weight=0.0),
        hard_negative=HardNegativeConfig(weight=0.2),
    ),
    truncation=TruncationConfig(mode="none"),
)


def test_the_paper_s_negatives_are_named_once_with_what_to_set(make_inputs: Make) -> None:
    """Not before the patience is spent, and not the term of weight 0, which has no share by intent."""
    watch = InertTerms(PAPER, patience=3)
    texts = [watch.observe(compose_reward(make_inputs(seed=step), PAPER).metrics()) for step in range(8)]
    assert [len(found) for found in texts] == [0, 0, 2, 0, 0, 0, 0, 0]
    for text, term in zip(texts[2], ("negative", "hard_negative"), strict=True):
        assert text.startswith(f"reward.terms.{term} has had no share in the advantages for 3 steps")
        assert f"reward.terms.{term}.anchor=rollout" in text and "does not depend on the rationale" in text


@pytest.mark.parametrize("trained", ["positive", "query"])
def test_negatives_that_act_are_not_named(make_inputs: Make, trained: str) -> None:
    """Compared with the rollout, or with queries that are the rollouts."""
    anchor = "rollout" if trained == "positive" else "query"
    terms = TermsConfig(negative=NegativeConfig(anchor=anchor), hard_negative=HardNegativeConfig(anchor=anchor))  # type: ignore[arg-type]
    config = replace(PAPER, terms=terms)
    watch = InertTerms(config, trained=trained, patience=1)  # type: ignore[arg-type]
    assert watch.observe(compose_reward(make_inputs(trained=trained), config).metrics()) == []


def test_a_step_with_a_share_starts_the_count_anew(make_inputs: Make) -> None:
    config = replace(PAPER, terms=TermsConfig(positive=TermConfig(), format=TermConfig()))
    watch = InertTerms(config, patience=2)
    inputs = make_inputs()
    assert inputs.well_formed_GK is not None
    alike = replace(inputs, well_formed_GK=inputs.well_formed_GK * 0 + 0.25)
    found = [watch.observe(compose_reward(i, config).metrics()) for i in (alike, inputs, alike, alike)]
    assert [len(texts) for texts in found] == [0, 0, 0, 1]
    assert "same for all rationales of a group" in found[3][0] and "prompt" in found[3][0]


def test_a_term_that_differs_where_no_two_rationales_are_kept_says_so(make_inputs: Make) -> None:
    config = replace(PAPER, terms=TermsConfig(positive=TermConfig()), truncation=TruncationConfig(mode="mask"))
    inputs = make_inputs()
    cut = replace(inputs, truncated_GK=inputs.truncated_GK | True)
    (text,) = InertTerms(config, patience=1).observe(compose_reward(cut, config).metrics())
    assert text.startswith("reward.terms.positive") and "no two rationales of a group are kept" in text


def test_terms_that_train_through_the_embeddings_need_no_share(make_inputs: Make) -> None:
    config = replace(PAPER, terms=replace(PAPER.terms, length=LengthConfig()))
    inert = InertTerms(config, pathwise=True, patience=2)
    inputs = replace(make_inputs(), lengths_GK=torch.full((4, 3), 5))
    found = [text for _ in range(4) for text in inert.observe(compose_reward(inputs, config).metrics())]
    assert len(found) == 1 and found[0].startswith("reward.terms.length has had no share")


def test_with_team_credit_negatives_of_other_texts_need_no_share_and_own_ones_do(make_inputs: Make) -> None:
    inert = InertTerms(PAPER, team_credit=True, patience=2)
    found = [text for _ in range(4) for text in inert.observe(compose_reward(make_inputs(), PAPER).metrics())]
    assert len(found) == 1 and found[0].startswith("reward.terms.negative has had no share")
