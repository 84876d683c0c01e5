"""The prompt that the model reads before it writes a rationale."""

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from grace_exp.config.base import STRICT


@dataclass(config=STRICT, frozen=True, kw_only=True)
class InstructionsConfig:
    """Optional instruction per role, placed behind the system prompt and therefore outside the pooled region."""

    query: str | None = None
    """Instruction for queries; null: none."""
    positive: str | None = None
    """Instruction for positives; null: none."""
    negative: str | None = None
    """Instruction for negatives; null: none."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class PromptConfig:
    """The system prompt; the text itself is the user turn."""

    name: Annotated[str, Field(min_length=1)]
    """Name of this choice of `prompt=`."""
    system: str | None
    """Text of the system message; null: no system message (templates may insert their own)."""
    instructions: InstructionsConfig = Field(default_factory=InstructionsConfig)
    max_tokens: Annotated[int, Field(ge=8)] = 1024
    """Token limit of the whole prompt. The user text is cut to fit; the template is never cut."""
