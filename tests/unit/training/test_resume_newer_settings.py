"""Checkpoints of versions that had fewer settings."""

from dataclasses import asdict
from pathlib import Path

import pytest

from grace_exp.config.compose import compose_config
from grace_exp.errors import ConfigError
from grace_exp.training.resume import check_same_run


def saved_without(*keys: str, overrides: tuple[str, ...] = ()) -> dict[str, object]:
    saved = asdict(compose_config(["+experiment=demo_tiny", *overrides], Path("run")))
    for key in keys:
        *parts, last = key.split(".")
        node = saved
        for part in parts:
            node = node[part]
        del node[last]
    return saved


def test_a_setting_that_the_checkpoint_does_not_know_was_its_default() -> None:
    config = compose_config(["+experiment=demo_tiny", "data.distinct_texts=false"], Path("run"))
    check_same_run(saved_without("data.distinct_texts", "data.filters", "data.leaks"), config)


def test_another_value_than_the_default_is_refused() -> None:
    config = compose_config(["+experiment=demo_tiny", "data.distinct_texts=true"], Path("run"))
    with pytest.raises(ConfigError, match=r"data\.distinct_texts: False in the checkpoint, True now"):
        check_same_run(saved_without("data.distinct_texts"), config)


def test_settings_of_sources_and_terms_that_the_checkpoint_does_not_know_were_their_defaults() -> None:
    newer = ("data.sources.wordnet.quoting", "reward.terms.hard_negative.equal_texts", "data.sources.wordnet.reader")
    check_same_run(saved_without(*newer), compose_config(["+experiment=demo_tiny"], Path("run")))


def test_a_term_that_the_checkpoint_had_as_null_is_another_run() -> None:
    saved = saved_without()
    saved["reward"]["terms"]["hard_negative"] = None  # type: ignore[index]
    with pytest.raises(ConfigError, match=r"reward\.terms\.hard_negative\.weight: None in the checkpoint"):
        check_same_run(saved, compose_config(["+experiment=demo_tiny"], Path("run")))
