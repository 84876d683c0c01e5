"""The sweep command in this process, with its children replaced."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

from grace_exp.config.compose import compose_config
from grace_exp.config.root import GraceConfig
from grace_exp.sweeps import sweep_job
from grace_exp.tracking.result import write_result

Invoke = Callable[..., int]


@dataclass(frozen=True)
class Started:
    """A command that was started in place of a child process."""

    arguments: list[str]
    environment: dict[str, str]
    fork: bool

    @property
    def overrides(self) -> dict[str, str]:
        """From key to value, as text."""
        return dict(text.split("=", 1) for text in self.arguments[3:])

    @property
    def folder(self) -> Path:
        """Its run folder."""
        return Path(self.overrides["hydra.run.dir"].strip("'"))

    @property
    def config(self) -> GraceConfig:
        """What it would run with; to be asked for after the sweep."""
        overrides = [f"{key}={value}" for key, value in self.overrides.items() if key != "hydra.run.dir"]
        return compose_config(overrides, self.folder)


Behaviour = Callable[[Started], tuple[int, int | None]]


class Children:
    """The commands that were started, and what they do instead of running."""

    def __init__(self) -> None:
        self.commands: list[Started] = []
        self.behaviour: Behaviour = self.finish

    @property
    def seeds(self) -> list[str]:
        return [command.overrides["seed"] for command in self.commands]

    @staticmethod
    def finish(started: Started) -> tuple[int, int | None]:
        """Ends without an error; the reward is the seed."""
        write_result(started.folder, {"reward/total/mean": float(started.overrides.get("seed", 0)), "train/loss": 1.0})
        return 0, None

    def start(
        self,
        arguments: list[str],
        output: Path,
        *,
        cwd: Path,
        keep_open: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
        fork: bool = False,
    ) -> SimpleNamespace:
        started = Started(arguments, dict(environment or {}), fork)
        self.commands.append(started)
        last_words = ["Traceback", "RuntimeError: no more memory"]
        return SimpleNamespace(wait=lambda starter: self.behaviour(started), last_words=lambda: last_words)


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Children:
    """Takes the place of child processes."""
    children = Children()
    monkeypatch.setattr(sweep_job, "ChildProcess", children.start)
    return children


@pytest.fixture
def invoke(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """As the fixture of all tests, with `-m +experiment=demo_tiny`."""
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(BasicSweeper, "validate_batch_is_legal", lambda *_: None)  # composes what we have composed
    return lambda *arguments: invoke("-m", "+experiment=demo_tiny", *arguments)
