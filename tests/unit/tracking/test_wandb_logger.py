"""Which mode a W&B run gets, and that runs end. What a run holds is read back in tests/integration."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from lightning.pytorch.loggers import Logger, WandbLogger

from grace_exp.config.backbone import BackboneConfig
from grace_exp.config.callbacks import CallbacksConfig
from grace_exp.config.data import DataConfig, SourceConfig
from grace_exp.config.evaluation import EvaluationConfig
from grace_exp.config.hardware import HardwareConfig
from grace_exp.config.job import JobConfig
from grace_exp.config.logger import LoggerConfig, WandbConfig
from grace_exp.config.method import MethodConfig
from grace_exp.config.objective import ObjectiveConfig
from grace_exp.config.optim import OptimConfig
from grace_exp.config.prompt import PromptConfig
from grace_exp.config.reward import RewardConfig, TermConfig, TermsConfig
from grace_exp.config.rollout import RolloutConfig
from grace_exp.config.root import GraceConfig
from grace_exp.errors import ConfigError, MissingResourceError
from grace_exp.tracking import wandb_logger
from grace_exp.tracking.wandb_logger import build_wandb_logger, finishing, stored_run_id

KEY = "0123456789abcdef" * 2 + "01234567"


def config(run_dir: Path, **settings: Any) -> GraceConfig:
    return GraceConfig(
        name="tracked",
        run_dir=str(run_dir),
        cache_dir=str(run_dir / "cache"),
        job=JobConfig(),
        backbone=BackboneConfig(name="tiny", source="tiny"),
        data=DataConfig(name="d", mode="supervised", sources={"a": SourceConfig(path="a.jsonl")}),
        prompt=PromptConfig(name="none", system=None),
        method=MethodConfig(),
        rollout=RolloutConfig(),
        reward=RewardConfig(name="r", terms=TermsConfig(positive=TermConfig())),
        objective=ObjectiveConfig(),
        optim=OptimConfig(),
        hardware=HardwareConfig(name="cpu"),
        logger=LoggerConfig(wandb=WandbConfig(**settings)),
        evaluation=EvaluationConfig(name="none"),
        callbacks=CallbacksConfig(),
    )


class _Run:
    starting_step = 0

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self.rows: list[tuple[int, dict[str, Any]]] = []

    def log(self, row: dict[str, Any], step: int) -> None:
        self.rows.append((step, row))

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What `wandb.init` was called with; no login on this machine; no run is started."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    wandb.teardown()  # its settings are read once a process
    arguments: dict[str, Any] = {}

    def record(**keywords: Any) -> _Run:
        arguments.update(keywords)
        return _Run()

    monkeypatch.setattr(wandb, "init", record)
    yield arguments
    monkeypatch.undo()
    wandb.teardown()


def test_without_a_login_auto_is_offline(tmp_path: Path, started: dict[str, Any]) -> None:
    build_wandb_logger(config(tmp_path / "run"))
    assert started["mode"] == "offline"


def test_with_a_key_in_the_environment_auto_is_online(
    tmp_path: Path, started: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    build_wandb_logger(config(tmp_path / "run"))
    assert started["mode"] == "online"


@pytest.mark.parametrize(("machine", "mode"), [("wandb.example.com", "online"), ("other.example.com", "offline")])
def test_a_netrc_entry_counts_for_its_own_server(
    tmp_path: Path, started: dict[str, Any], monkeypatch: pytest.MonkeyPatch, machine: str, mode: str
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.com")
    (tmp_path / "netrc").write_text(f"machine {machine}\n  login user\n  password {KEY}\n")
    (tmp_path / "netrc").chmod(0o600)
    build_wandb_logger(config(tmp_path / "run"))
    assert started["mode"] == mode


@pytest.mark.parametrize(
    ("environment", "mode"), [("offline", "offline"), ("dryrun", "offline"), ("disabled", "disabled")]
)
def test_the_environment_wins_over_the_configuration(
    tmp_path: Path, started: dict[str, Any], monkeypatch: pytest.MonkeyPatch, environment: str, mode: str
) -> None:
    monkeypatch.setenv("WANDB_MODE", environment)
    build_wandb_logger(config(tmp_path / "run", mode="online"))
    assert started["mode"] == mode


def test_auto_respects_the_wish_that_wandb_offline_leaves(
    tmp_path: Path, started: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    (tmp_path / "settings").write_text("[default]\nmode = offline\n")
    build_wandb_logger(config(tmp_path / "run"))
    assert started["mode"] == "offline"


def test_online_without_a_login_says_what_to_do(tmp_path: Path, started: dict[str, Any]) -> None:
    with pytest.raises(MissingResourceError, match=r"wandb login.*logger\.wandb\.mode=offline"):
        build_wandb_logger(config(tmp_path / "run", mode="online"))
    assert not started


def test_an_unknown_mode_in_the_environment_is_named(
    tmp_path: Path, started: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    with pytest.raises(ConfigError, match=r"WANDB_MODE='sometimes'.*offline"):
        build_wandb_logger(config(tmp_path / "run"))


def test_a_resumed_run_has_the_id_of_the_first(tmp_path: Path, started: dict[str, Any]) -> None:
    run_dir = tmp_path / "run"
    assert stored_run_id(run_dir) is None
    build_wandb_logger(config(run_dir))
    first = started["id"]
    assert stored_run_id(run_dir) == first
    build_wandb_logger(config(run_dir), resume_id=stored_run_id(run_dir))
    assert started["id"] == first
    build_wandb_logger(config(run_dir))
    assert started["id"] == stored_run_id(run_dir) != first


def test_settings_config_and_provenance_reach_wandb(tmp_path: Path, started: dict[str, Any]) -> None:
    build_wandb_logger(
        config(tmp_path / "run", project="p", entity="e", group="g", tags=["t"]), {"git": {"revision": "abc"}}
    )
    assert [started[key] for key in ("project", "entity", "group", "tags", "name")] == ["p", "e", "g", ["t"], "tracked"]
    assert started["dir"] == str(tmp_path / "run")
    assert started["config"]["reward"]["terms"]["positive"]["weight"] == 1.0
    assert started["config"]["provenance"] == {"git": {"revision": "abc"}}


def test_other_ranks_have_no_run(tmp_path: Path, started: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_logger.rank_zero_only, "rank", 1)
    logger = build_wandb_logger(config(tmp_path / "run"))
    with finishing([logger]):
        logger.log_metrics({"train/loss": 1.0}, 1)
    assert not started
    assert not (tmp_path / "run").exists()


class _Plain(Logger):
    name = version = "plain"
    status: str | None = None

    def log_metrics(self, metrics: Any, step: int | None = None) -> None: ...

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None: ...

    def finalize(self, status: str) -> None:
        self.status = status


def test_runs_end_with_the_block_and_say_whether_it_failed() -> None:
    run, plain = _Run(), _Plain()
    with finishing([plain, WandbLogger(experiment=run)]):
        assert run.exit_code is None
    assert (run.exit_code, plain.status) == (0, "success")
    for error in (RuntimeError, KeyboardInterrupt):
        run, plain = _Run(), _Plain()
        with pytest.raises(error), finishing([plain, WandbLogger(experiment=run)]):
            raise error
        assert (run.exit_code, plain.status) == (1, "failed")


def test_steps_that_the_server_has_are_not_sent_again() -> None:
    run = _Run()
    run.starting_step = 12
    logger = wandb_logger.StepWandbLogger(experiment=run)
    for step in (10, 11, 12):
        logger.log_metrics({"train/loss": float(step)}, step)
    assert run.rows == [(12, {"train/loss": 12.0})]
    with pytest.raises(ValueError, match="step"):
        logger.log_metrics({"train/loss": 1.0})
