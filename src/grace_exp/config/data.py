"""The sources of the training texts."""

from dataclasses import replace
from glob import has_magic
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from grace_exp.config.base import STRICT
from grace_exp.config.filters import PRESETS, FiltersConfig
from grace_exp.config.own_parts import OwnFunction
from grace_exp.config.prompt import InstructionsConfig

FILE_FORMATS = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
}
"""The format that `format: auto` chooses for each file ending."""

COMPRESSED = (".gz", ".zst")
"""Endings of compressed files, which follow the ending of the format."""
Path_ = Annotated[str, Field(min_length=1)]


def format_of(path: Path) -> str | None:
    """Return the format that a file's ending names, ignoring an ending of compression; None if it names none."""
    plain = path.with_suffix("") if path.suffix in COMPRESSED else path
    return FILE_FORMATS.get(plain.suffix)


@dataclass(config=STRICT, frozen=True, kw_only=True)
class SourceConfig:
    """One file, set of files or named data set."""

    path: Path_ | Annotated[tuple[Path_, ...], Field(min_length=1)]
    """A file, a folder or a glob (relative to the working directory), the URL of a file, a hub name, or
    `builtin:wordnet` / `builtin:stsb`; or a list of these. Files may be compressed (.gz, .zst)."""
    format: Literal["auto", "jsonl", "csv", "parquet", "text", "hub", "builtin"] = "auto"
    """`auto` uses the ending (.jsonl .json .csv .tsv .parquet .txt); a path without a known ending is a hub name. A
    .json file may hold one object a line or one array."""
    quoting: Literal["auto", "quoted", "none"] = "auto"
    """Quoting of CSV and TSV files. quoted: fields with a delimiter, quote or line break stand in double quotes, as
    spreadsheets write them; none: a line is a row, and a quote is text; auto: quoted for .csv, none for .tsv."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """SHA-256 digest of the one file that `path` names, local or remote; a file with another digest is refused. null:
    not checked."""
    subset: str | None = None
    """Configuration name of a hub data set."""
    split: str = "train"
    """Split of a hub data set."""
    streaming: bool = False
    """Read a hub data set over the network without storing its files; with `limit`, only its first rows are fetched."""
    query: str = "query"
    """Name of the column of the query."""
    positive: str = "positive"
    """Name of the column of the positive."""
    negative: str | None = "negative"
    """Name of the column of the negatives, one text or a list of texts; null: instances have no negative."""
    text: str = "text"
    """Name of the column of the text, for unsupervised data."""
    mode: Literal["supervised", "unsupervised"] | None = None
    """Whether the source is supervised; null: as `data.mode`. With data.mode=mixed every source must set it."""
    negatives: Annotated[int, Field(ge=0)] | None = None
    """Negatives per instance of this source; null: as `data.negatives`."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of this source in the mixture, relative to the other sources' weights."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Use only so many first rows; null: all."""
    reader: OwnFunction | None = None
    """A function that you write to read `path`. It returns rows, each a dict by column (docs/extending.md); null:
    `format` chooses the reader."""
    instructions: InstructionsConfig = Field(default_factory=InstructionsConfig)
    """Instructions by role for this source's texts, in training; null: as `prompt.instructions`."""

    @model_validator(mode="after")
    def _one_digest(self) -> Self:
        if self.sha256 is not None and not isinstance(self.path, str):
            raise ValueError(f"`sha256` is the digest of one file, but `path` lists {len(self.path)}: name one")
        return self

    @property
    def single(self) -> "tuple[SourceConfig, ...]":
        """Return the source once for each of its paths."""
        paths = (self.path,) if isinstance(self.path, str) else self.path
        return tuple(replace(self, path=path) for path in paths)

    @property
    def kind(self) -> Literal["builtin", "url", "file", "hub", "own"]:
        """Where the rows of a source with one path are."""
        assert isinstance(self.path, str)
        if self.reader is not None:
            return "own"
        if self.format == "builtin" or (self.format == "auto" and self.path.startswith("builtin:")):
            return "builtin"
        if self.format == "hub":
            return "hub"
        if "://" in self.path:
            return "url"
        path = Path(self.path).expanduser()
        is_file = format_of(path) is not None or has_magic(self.path) or self.path.startswith((".", "/", "~"))
        return "file" if self.format != "auto" or is_file or path.exists() else "hub"


@dataclass(config=STRICT, frozen=True, kw_only=True)
class DataConfig:
    """A recipe: sources, how they are mixed, and what happens to bad rows."""

    name: Annotated[str, Field(min_length=1)]
    """Name of this choice of `data=`."""
    mode: Literal["supervised", "unsupervised", "mixed"]
    """supervised: (query, positive, negative) rows; unsupervised: one text a row; mixed: sources of both kinds."""
    sources: dict[str, SourceConfig]
    """The sources by name, so that one setting can be overridden: data.sources.e5.path=my.jsonl"""
    on_bad_row: Literal["error", "reject"] = "error"
    """error: stop at the first bad row, naming file and line; reject: skip bad rows, count them, and list them in
    rejects.jsonl."""
    max_characters: Annotated[int, Field(ge=1)] | None = None
    """Longest text in characters; a row with a longer text is a bad row; null: no limit (the prompt is still cut to its
    token limit)."""
    negatives: Annotated[int, Field(ge=0)] = 1
    """Negatives per supervised instance; rows with fewer are bad rows. A source may set its own number, also 0; then
    the number differs between the instances of a step."""

    clean: Literal["none", "standard"] = "none"
    """Preset of filters. none: only unusable rows are left out. standard: also duplicates, instances with equal texts,
    and positives that do not fit into the prompt."""
    filters: FiltersConfig = Field(default_factory=FiltersConfig)
    """Filters that override the preset's."""
    leaks: Literal["report", "drop", "refuse"] = "report"
    """What happens to training texts that overlap with evaluation texts. report: job=prepare_data counts them; drop:
    their instances are left out; refuse: the run stops."""
    leak_ngram: Annotated[int, Field(ge=4)] = 13
    """Two texts also overlap if they share so many words in a row."""
    max_rejected: Annotated[float, Field(ge=0, le=1)] | None = None
    """Largest share of a source's rows that may be bad (with on_bad_row=reject); above it the run stops. null: no
    limit."""
    batch_by: Literal["mixed", "source"] = "mixed"
    """mixed: a batch has instances of all sources; source: each batch is from one source."""
    weights: Literal["given", "proportional", "temperature"] = "given"
    """How the sources are weighted. given: by each source's own weight; proportional: by its number of rows;
    temperature:
    by the number of rows to the power of 1 / weights_temperature."""
    weights_temperature: Annotated[float, Field(gt=0)] = 2.0
    """Above 1, small sources are drawn more often than in proportion to their size."""
    distinct_texts: bool = False
    """No two instances of a batch share a text, as far as the data allow; a shared text would be a false negative. An
    instance that shares one is exchanged with a later instance of the same source."""

    curriculum: Literal["none", "difficulty"] = "none"
    """difficulty: within a source, instances are drawn more often if their rationales failed to find them in their
    batch (embed/in_batch_accuracy); instances that were not drawn yet come first. Experimental; the paper draws
    uniformly."""
    curriculum_floor: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Weight of an instance that is always found, relative to one that never is; 1: uniform."""

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

    @property
    def instructions(self) -> dict[str, InstructionsConfig]:
        """Return the instructions of each source that has some, by name of the source."""
        instructions = {name: source.instructions for name, source in self.sources.items()}
        return {name: texts for name, texts in instructions.items() if any(vars(texts).values())}

    @property
    def effective_filters(self) -> FiltersConfig:
        """Return the filters, with the preset's values in place of null."""
        preset = {key: value for key, value in PRESETS[self.clean].items() if getattr(self.filters, key) is None}
        return replace(self.filters, **preset)  # type: ignore[arg-type]  # each preset has the field's type

    def of(self, name: str) -> "DataConfig":
        """Return the recipe with one source only, and that source's `mode` and `negatives`."""
        source = self.sources[name]
        mode = source.mode or self.mode
        negatives = self.negatives if source.negatives is None else source.negatives
        return replace(self, mode=mode, negatives=0 if mode == "unsupervised" else negatives, sources={name: source})

    def negative_counts(self) -> set[int]:
        """Return the numbers of negatives that instances have; several where sources differ."""
        return {self.of(name).negatives for name in self.sources}
