"""W&B's limits, before anything loads."""

from pathlib import Path

import pytest

from grace_exp.config.compose import compose_config
from grace_exp.config.logger import wandb_mode
from grace_exp.config.preflight import check_machine
from grace_exp.errors import ConfigError
from grace_exp.tracking.wandb_logger import build_wandb_logger, finishing


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            f"logger.wandb.tags=[{'t' * 65}]",
            r"tags\.0 = .* must be text, of length at least 1, of length at most 64",
        ),
        ("logger.wandb.tags=['']", r"logger\.wandb\.tags\.0 = \"\""),
        (f"logger.wandb.group={'g' * 129}", r"logger\.wandb\.group = .* of length at most 128"),
        ("logger.wandb.project='a/b'", r"logger\.wandb\.project = \"a/b\""),
        (f"name={'n' * 129}", "name = "),
    ],
    ids=["long tag", "empty tag", "group", "project", "name"],
)
def test_what_wandb_would_refuse_is_refused_when_composing(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        compose_config(["+experiment=demo_tiny", "logger=wandb", override], tmp_path)


def test_an_empty_mode_is_none_and_a_wrong_one_is_found_before_anything_loads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = compose_config(["+experiment=demo_tiny", "logger=wandb", "logger.wandb.mode=offline"], tmp_path)
    monkeypatch.setenv("WANDB_MODE", "")
    monkeypatch.setenv("WANDB_SILENT", "")
    assert wandb_mode() is None
    check_machine(config)
    logger = build_wandb_logger(config)
    with finishing([logger]):
        assert logger.experiment.offline
    monkeypatch.setenv("WANDB_MODE", "onlin")
    with pytest.raises(ConfigError, match=r"WANDB_MODE='onlin': allowed are online, offline"):
        check_machine(config)
