from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from grace_exp.config.compose import compose_config
from grace_exp.config.prompt import PromptConfig
from grace_exp.config.root import GraceConfig
from grace_exp.data.prompts import PromptBuilder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@pytest.fixture
def config(tmp_path: Path) -> GraceConfig:
    """The tiny demo's settings."""
    return compose_config(["+experiment=demo_tiny"], tmp_path / "run")


@pytest.fixture
def prompts(tokenizer: "PreTrainedTokenizerBase") -> PromptBuilder:
    """Prompts of at most 64 tokens."""
    return PromptBuilder(tokenizer, PromptConfig(name="p", system="Say it.", max_tokens=64))
