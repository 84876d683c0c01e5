"""Which usable instances a recipe leaves out."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from grace_exp.config.base import STRICT

TextRole = Literal["query", "positive", "negative"]
Tokens = Annotated[int, Field(ge=1)]


@dataclass(config=STRICT, frozen=True, kw_only=True)
class TokenLimits:
    """A number of tokens of a text by role, template and system prompt not counted; null: no limit."""

    query: Tokens | None = None
    """For queries; null: no limit."""
    positive: Tokens | None = None
    """For positives; null: no limit."""
    negative: Tokens | None = None
    """For negatives; null: no limit."""

    def __bool__(self) -> bool:
        """Whether any role has a limit."""
        return any((self.query, self.positive, self.negative))


@dataclass(config=STRICT, frozen=True, kw_only=True)
class FiltersConfig:
    """Filters of instances; null: as the preset `data.clean` says. An instance goes for the first reason that fits."""

    same_texts: bool | None = None
    """Leave out instances whose query equals the positive, or one of both a negative (compared as `normalized`)."""
    duplicates: Literal["keep", "exact", "normalized"] | None = None
    """Leave out instances all of whose texts occurred together before. normalized: without regard to case, white space,
    punctuation and Unicode form."""
    repeated_texts: Literal["keep", "exact", "normalized"] | None = None
    """Leave out instances whose query or positive occurred before, in either role."""
    near_duplicates: Annotated[float, Field(gt=0, le=1)] | None = None
    """Leave out instances whose texts share this share of word trigrams with an earlier instance's (estimated Jaccard
    similarity, MinHash; needs the package datasketch)."""
    uncut: tuple[TextRole, ...] | None = None
    """Roles whose text must fit into `prompt.max_tokens` uncut, with the backbone's own tokenizer and template."""
    min_tokens: TokenLimits = Field(default_factory=TokenLimits)
    max_tokens: TokenLimits = Field(default_factory=TokenLimits)
    keep_pattern: str | None = None
    """A regular expression that every text of an instance must contain."""
    drop_pattern: str | None = None
    """A regular expression that no text of an instance may contain."""
    languages: tuple[Annotated[str, Field(pattern=r"^[a-z]{2}$")], ...] = ()
    """Languages (ISO 639-1) that every text must be in; empty: any (needs the package py3langid)."""

    @property
    def needs_tokens(self) -> bool:
        """Whether texts have to be tokenised."""
        return bool(self.uncut) or bool(self.min_tokens) or bool(self.max_tokens)


PRESETS: dict[str, dict[str, object]] = {
    "none": {"same_texts": False, "duplicates": "keep", "repeated_texts": "keep", "uncut": ()},
    "standard": {"same_texts": True, "duplicates": "normalized", "repeated_texts": "keep", "uncut": ("positive",)},
}
"""What `data.clean` stands for. The paper filters positives by length and nothing else."""
