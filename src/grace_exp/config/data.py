"""Where the training texts come from."""

from dataclasses import replace
from glob import has_magic
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from grace_exp.config.base import STRICT

FILE_FORMATS = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
}
"""What `format: auto` takes a file for, by its ending."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class SourceConfig:
    """One file, set of files or named data set."""

    path: Annotated[str, Field(min_length=1)]
    """A file or a glob (relative to the working directory), the URL of a file, a hub name, or `builtin:wordnet` /
    `builtin:stsb`."""
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
    mode: Literal["supervised", "unsupervised"] | None = None
    """null: as `data.mode`; in a mixed recipe every source says its own."""
    negatives: Annotated[int, Field(ge=0)] | None = None
    """Negatives used per instance of this source; null: as `data.negatives`."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Share of the mixture, relative to the other sources' weights."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Take only the first rows."""

    @property
    def kind(self) -> Literal["builtin", "url", "file", "hub"]:
        """Where the rows are."""
        if self.format == "builtin" or (self.format == "auto" and self.path.startswith("builtin:")):
            return "builtin"
        if self.format == "hub":
            return "hub"
        if "://" in self.path:
            return "url"
        path = Path(self.path).expanduser()
        is_file = path.suffix in FILE_FORMATS or has_magic(self.path) or self.path.startswith((".", "/", "~"))
        return "file" if self.format != "auto" or is_file or path.exists() else "hub"


@dataclass(config=STRICT, frozen=True, kw_only=True)
class DataConfig:
    """A recipe: sources, how they mix, and what happens to bad rows."""

    name: Annotated[str, Field(min_length=1)]
    mode: Literal["supervised", "unsupervised", "mixed"]
    """supervised: (query, positive, negative) rows; unsupervised: one text a row; mixed: sources of both kinds."""
    sources: dict[str, SourceConfig]
    """By name, so that one setting can be overridden: data.sources.e5.path=my.jsonl"""
    on_bad_row: Literal["error", "reject"] = "error"
    """error: stop at the first bad row, naming file and line; reject: go on; rejects.jsonl and a count tell."""
    max_characters: Annotated[int, Field(ge=1)] | None = None
    """A longer text makes its row a bad one; null: no limit here (the prompt truncates to its token limit)."""
    negatives: Annotated[int, Field(ge=0)] = 1
    """Negatives used per supervised instance; rows with fewer are bad rows. A source may have a number of its own, 0
    too: then the instances of a step differ in it."""

    @model_validator(mode="after")
    def _has_sources(self) -> Self:
        if not self.sources:
            raise ValueError("`sources` is empty: name at least one source")
        return self

    @model_validator(mode="after")
    def _modes_agree(self) -> Self:
        modes = {name: source.mode for name, source in self.sources.items()}
        if self.mode == "mixed":
            silent = [f"sources.{name}.mode=null" for name, mode in modes.items() if mode is None]
            if silent:
                raise ValueError(
                    f"mode='mixed', but {', '.join(silent)}: say supervised or unsupervised of each source"
                )
            if len(set(modes.values())) == 1:
                (only,) = set(modes.values())
                raise ValueError(f"mode='mixed', but every source is {only}: set data.mode={only}")
        other = [name for name, mode in modes.items() if mode not in (None, self.mode) and self.mode != "mixed"]
        if other:
            raise ValueError(
                f"sources.{other[0]}.mode={modes[other[0]]!r} in a recipe of mode={self.mode!r}: set data.mode=mixed, "
                "and the mode of every source"
            )
        return self

    def of(self, name: str) -> "DataConfig":
        """This recipe as one of its sources sees it: that source alone, `mode` and `negatives` its own."""
        source = self.sources[name]
        mode = source.mode or self.mode
        own = self.negatives if source.negatives is None else source.negatives
        return replace(self, mode=mode, negatives=0 if mode == "unsupervised" else own, sources={name: source})

    def negative_counts(self) -> set[int]:
        """The numbers of negatives that instances have; more than one where sources differ in it."""
        return {self.of(name).negatives for name in self.sources}
