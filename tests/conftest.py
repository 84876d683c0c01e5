import os

# Before any library reads them: nothing is uploaded or downloaded, and tokenizers start no threads.
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_DISABLE_WEAVE", "true")  # it advertises where tests of job=serve have imported a client

import copy
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@pytest.fixture(scope="session")
def tokenizer() -> "PreTrainedTokenizerBase":
    """The tiny model's tokenizer; tests that change it copy it first."""
    from grace_exp.policy.tiny import tiny_tokenizer

    return tiny_tokenizer()


@pytest.fixture(scope="session")
def shared_model() -> "PreTrainedModel":
    """The tiny model in evaluation mode, shared by all tests, which must not change it."""
    from grace_exp.policy.tiny import tiny_model

    return tiny_model(seed=0).eval()


@pytest.fixture
def model(shared_model: "PreTrainedModel") -> "PreTrainedModel":
    """A tiny model for this test alone."""
    return copy.deepcopy(shared_model)


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """Runs the command in this process, in an empty folder, and returns its exit code."""
    import grace_exp.__main__ as command

    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRACE_EXP_CACHE", str(tmp_path / "cache"))

    def invoked(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["grace-exp", *arguments])
        try:
            command.main()
        except SystemExit as stop:
            assert isinstance(stop.code, int)
            return stop.code
        return 0

    yield invoked
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
