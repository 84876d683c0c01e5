import os

# Before any library reads them: nothing is uploaded or downloaded, and tokenizers start no threads.
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import copy
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
    """The tiny model in evaluation mode, the same for all tests: not to be changed."""
    from grace_exp.policy.tiny import tiny_model

    return tiny_model(seed=0).eval()


@pytest.fixture
def model(shared_model: "PreTrainedModel") -> "PreTrainedModel":
    """A tiny model of the test's own."""
    return copy.deepcopy(shared_model)
