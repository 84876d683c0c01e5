"""The names of jobs' folders."""

import pytest
from omegaconf import OmegaConf

from grace_exp.sweeps.folders import job_folder, short_names, short_value, swept_values


def folder(seed: int = 0, **other: object) -> str:
    settings = {"seed": seed, "run_dir": "${hydra:runtime.output_dir}", "cache_dir": "a", "optimized_metric": None}
    hydra = {"overrides": {"task": ["+x=1", f"seed={seed}"]}, "callbacks": {"sweep": {"swept": ["seed"]}}}
    return job_folder(OmegaConf.create({**settings, **other, "hydra": hydra}))


def test_equal_settings_have_equal_names_wherever_they_write() -> None:
    assert folder() == folder(run_dir="b", cache_dir="c", optimized_metric="d")
    assert folder().startswith("seed-0_")


def test_other_settings_have_other_names_even_if_no_override_says_so() -> None:
    assert len({folder(), folder(1), folder(steps=5), folder(steps=6), folder(steps="${seed}")}) == 5


def test_interpolations_count_by_their_value() -> None:
    assert folder(steps="${seed}") == folder(steps=0)


@pytest.mark.parametrize(
    ("keys", "short"),
    [
        (["seed"], ["seed"]),
        (["reward.terms.consistency.weight"], ["consistency.weight"]),
        (["a.b.weight", "c.b.weight", "seed"], ["a.b.weight", "c.b.weight", "seed"]),
        (["b.c", "a.b.c"], ["b.c", "a.b.c"]),
    ],
)
def test_keys_are_shortened_as_far_as_they_stay_apart(keys: list[str], short: list[str]) -> None:
    assert short_names(keys) == dict(zip(keys, short, strict=True))


def test_only_swept_overrides_set_a_job_apart() -> None:
    overrides = ["+experiment=demo", "+backbone.lora.rank=4", "seed=1", "~evaluation.sets.stsb"]
    assert swept_values(overrides, ["seed", "backbone.lora.rank"]) == {"backbone.lora.rank": "4", "seed": "1"}


@pytest.mark.parametrize(
    ("value", "short"), [("0.5488135039273248", "0.5488"), ("200", "200"), ("0.3", "0.3"), ("my.jsonl", "my.jsonl")]
)
def test_long_numbers_are_rounded(value: str, short: str) -> None:
    assert short_value(value) == short
