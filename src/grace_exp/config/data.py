"""Where the training texts come from."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from grace_exp.config.base import STRICT


@dataclass(config=STRICT, frozen=True, kw_only=True)
class SourceConfig:
    """One file, set of files or named data set."""

    path: Annotated[str, Field(min_length=1)]
    """A file or a glob (relative to the working directory), a hub name, or `builtin:wordnet` / `builtin:stsb`."""
    format: Literal["auto", "jsonl", "csv", "parquet", "text", "hub", "builtin"] = "auto"
    """`auto` goes by the ending (.jsonl .json .csv .tsv .parquet .txt); anything else is a hub name."""
    subset: str | None = None
    """Configuration name of a hub data set."""
    split: str = "train"
    query: str = "query"
    """Column names; `negative` may hold one text or a list of them."""
    positive: str = "positive"
    negative: str | None = "negative"
    """null: instances without a negative."""
    text: str = "text"
    """Column name for unsupervised data."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Share of the mixture, relative to the other sources' weights."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Take only the first rows."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class DataConfig:
    """A recipe: sources, how they mix, and what happens to bad rows."""

    name: Annotated[str, Field(min_length=1)]
    mode: Literal["supervised", "unsupervised"]
    """supervised: (query, positive, negative) rows; unsupervised: one text a row."""
    sources: dict[str, SourceConfig]
    """By name, so that one setting can be overridden: data.sources.e5.path=my.jsonl"""
    on_bad_row: Literal["error", "reject"] = "error"
    """error: stop at the first bad row, naming file and line; reject: go on; rejects.jsonl and a count tell."""
    max_characters: Annotated[int, Field(ge=1)] | None = None
    """A longer text makes its row a bad one; null: no limit here (the prompt truncates to its token limit)."""
    negatives: Annotated[int, Field(ge=0)] = 1
    """Negatives used per supervised instance; rows with fewer are bad rows."""

    @model_validator(mode="after")
    def _has_sources(self) -> Self:
        if not self.sources:
            raise ValueError("`sources` is empty: name at least one source")
        return self
