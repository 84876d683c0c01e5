"""Filters that leave out usable instances."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from grace_exp.config.base import STRICT

TextRole = Literal["query", "positive", "negative"]
Tokens = Annotated[int, Field(ge=1)]


@dataclass(config=STRICT, frozen=True, kw_only=True)
class TokenLimits:
    """The most tokens that a text of each role may have, without template and system prompt; null: no limit."""

    query: Tokens | None = None
    """Limit for queries; null: no limit."""
    positive: Tokens | None = None
    """Limit for positives; null: no limit."""
    negative: Tokens | None = None
    """Limit for negatives; null: no limit."""

    def __bool__(self) -> bool:
        """Whether any role has a limit."""
        return any((self.query, self.positive, self.negative))


@dataclass(config=STRICT, frozen=True, kw_only=True)
class FiltersConfig:
    """Filters of instances; null: as the preset `data.clean` says. An instance counts for the first that matches."""

    same_texts: bool | None = None
    """Leave out instances whose query equals the positive, or where a negative equals either (compared as
    `normalized`)."""
    duplicates: Literal["keep", "exact", "normalized"] | None = None
    """Leave out instances if an earlier instance has all the same texts. normalized: ignoring case, white space,
    punctuation and Unicode form."""
    repeated_texts: Literal["keep", "exact", "normalized"] | None = None
    """Leave out instances whose query or positive occurred earlier, in either role."""
    near_duplicates: Annotated[float, Field(gt=0, le=1)] | None = None
    """Leave out instances whose share of word trigrams in common with an earlier instance reaches this value (estimated
    Jaccard similarity, MinHash; needs the package datasketch)."""
    uncut: tuple[TextRole, ...] | None = None
    """Roles whose texts must fit into `prompt.max_tokens` without being cut, with the backbone's tokenizer and
    template."""
    min_tokens: TokenLimits = Field(default_factory=TokenLimits)
    max_tokens: TokenLimits = Field(default_factory=TokenLimits)
    keep_pattern: str | None = None
    """A regular expression that every text of an instance must contain."""
    drop_pattern: str | None = None
    """A regular expression that no text of an instance may contain."""
    languages: tuple[Annotated[str, Field(pattern=r"^[a-z]{2}$")], ...] = ()
    """Languages (ISO 639-1) that every text must be in; empty: any language (needs the package py3langid)."""

    @property
    def needs_tokens(self) -> bool:
        """Whether texts must be tokenised."""
        return bool(self.uncut) or bool(self.min_tokens) or bool(self.max_tokens)


PRESETS: dict[str, dict[str, object]] = {
    "none": {"same_texts": False, "duplicates": "keep", "repeated_texts": "keep", "uncut": ()},
    "standard": {"same_texts": True, "duplicates": "normalized", "repeated_texts": "keep", "uncut": ("positive",)},
}
"""The filters of each value of `data.clean`. The paper filters positives by length only."""
