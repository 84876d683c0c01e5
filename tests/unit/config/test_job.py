"""Settings of the jobs beside training."""

from pathlib import Path

import pytest

from grace_exp.config.compose import compose_config
from grace_exp.config.preflight import check_machine
from grace_exp.config.root import GraceConfig
from grace_exp.errors import ConfigError, MissingResourceError

EMBED = ["job=embed", "hardware=cpu"]
FILES = ["job.input=texts.txt", "job.output=vectors.npy"]


def composed(*overrides: str) -> GraceConfig:
    return compose_config([*EMBED, *overrides], Path("run"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], r"job=embed needs job\.input and job\.output"),
        ([*FILES, "job.output=vectors.csv"], r"job\.output"),
        ([*FILES, "job.encode.samples=3"], r"samples=3 with temperature=0 would write the same rationale 3 times"),
        ([*FILES, "job.model=a", "job.resume=b"], r"model='a' with resume='b': name the weights once"),
        ([*FILES, "job.encode.mode=fast"], r"job\.encode\.mode"),
    ],
)
def test_embed_is_told_what_it_needs(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        composed(*overrides)


def test_embed_with_a_model_of_its_own_asks_the_machine_for_the_texts_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = composed(*FILES, "job.model=runs/mine")  # neither the configured backbone nor the training data
    with pytest.raises(MissingResourceError) as error:
        check_machine(config)
    assert str(error.value).splitlines()[1:-2] == [f"  - job.input=texts.txt: no such file in {tmp_path}"]
    (tmp_path / "texts.txt").write_text("a\n")
    check_machine(config)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], r"job=distill needs job\.model and job\.input"),
        (["job.encode.truncate_dim=8"], r"encode\.truncate_dim=8 with job=distill.*job\.encode\.truncate_dim=null"),
        (["job.distill.batch_size=2"], r"job\.distill\.batch_size"),
        (["evaluation=none"], r"job=distill, but evaluation=none has no sets"),
        (["hardware.devices=2", "hardware.strategy=ddp"], r"job=distill with 2 processes.*set hardware\.devices=1"),
    ],
)
def test_distill_is_told_what_it_needs(overrides: list[str], message: str) -> None:
    given = ["job.model=runs/mine", "job.input=texts.txt"] if overrides else []
    with pytest.raises(ConfigError, match=message):
        compose_config(["job=distill", "hardware=cpu", "evaluation=demo", *given, *overrides], Path("run"))


def test_distill_asks_the_machine_for_texts_and_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["job.model=runs/mine", "job.input=texts.txt", "job.distill.student=./small"]
    config = compose_config(["job=distill", "hardware=cpu", "evaluation=demo", *given], Path("run"))
    with pytest.raises(MissingResourceError) as error:
        check_machine(config)
    assert "job.distill.student=./small: no such folder" in str(error.value)
    assert f"job.input=texts.txt: no such file in {tmp_path}" in str(error.value)
    (tmp_path / "texts.txt").write_text("a\n")
    (tmp_path / "other").mkdir()
    given = ["job.model=runs/mine", "job.input=texts.txt", "job.distill.student=./other"]
    check_machine(compose_config(["job=distill", "hardware=cpu", "evaluation=demo", *given], Path("run")))


def test_clearing_the_cache_asks_the_machine_for_nothing() -> None:
    check_machine(compose_config(["job=clear_cache"], Path("run")))
