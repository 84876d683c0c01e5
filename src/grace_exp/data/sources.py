"""Turns a source (files, hub data set, built-in) into rows on disk, checked and cached by content.

Rows of every format are checked one by one and written once to an Arrow file in the cache folder. From then on the
`datasets` library memory-maps them. `Dataset.from_generator` does not write them, because it wraps errors, hashes the
generator's code, and would not report rejected rows again when a run finds the rows in its cache.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from grace_exp.config.data import COMPRESSED, FILE_FORMATS, DataConfig, SourceConfig, format_of
from grace_exp.data.file_digests import file_digest
from grace_exp.data.hub import load_hub, stream_hub
from grace_exp.data.json_array import read_json
from grace_exp.data.lines import BadRow, Reader, Row, read_csv, read_jsonl, read_parquet, read_text
from grace_exp.data.own_reader import digest_of_own_rows, read_own
from grace_exp.data.remote import fetch
from grace_exp.data.rows import RejectLog, Texts, columns, reject_line, texts_of
from grace_exp.data.stsb import stsb_triplets
from grace_exp.data.wordnet import wordnet_path
from grace_exp.errors import ConfigError, DataError

if TYPE_CHECKING:
    import datasets

VERSION = 2
"""Part of the cache key; raise it when rows are read or checked differently."""

_BUILTIN = "builtin:"
_SPLITS: dict[str, Literal["train", "dev", "test"]] = {"train": "train", "dev": "dev", "test": "test"}
_BATCH = 1000


@dataclass(frozen=True)
class LoadedSource:
    """A source whose rows are prepared.

    Attributes:
        rows: Memory-mapped rows with the columns query, positive, negatives (list of texts), or text.
        digest: Digest of the rows' contents; it does not depend on their place and format.
        rejected: Number of bad rows left out.
        kept: Positions of `rows` among the prepared rows if filters left some out, [rows]; None: no row was left out.
        dropped: Number of rows that filters left out, by reason.
    """

    rows: "datasets.Dataset"
    digest: str
    rejected: int
    kept: NDArray[np.int64] | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Part:
    """A file or something similar: a label for messages, a digest of its contents, its rows, and their unit."""

    label: str
    digest: str
    rows: Callable[[], Iterator[Row | BadRow]]
    unit: str = "line"


def load_source(
    name: str, source: SourceConfig, data: DataConfig, rejects: RejectLog | None, cache_dir: Path
) -> LoadedSource:
    """Return a source from the cache; if it is not there, read and check it.

    Args:
        name: Name of the source in the recipe, for messages.
        source: Where the rows are and how their columns are named.
        data: Mode, limits, and what happens to bad rows.
        rejects: The log of rejected rows; None: they are counted only.
        cache_dir: Folder of prepared rows; processes may share it.

    Raises:
        ConfigError: The settings of source and data contradict each other.
        DataError: A file does not exist, is empty or unreadable; a row is bad and `data.on_bad_row` is `error`; no row
            is usable; or the hub cannot be reached.
        MissingResourceError: `builtin:stsb` is read without its package.
    """
    import datasets

    needed = columns(name, source, data)
    parts = [part for single in source.single for part in _parts(name, single, data, needed, cache_dir)]
    settings = {
        "version": VERSION,
        "parts": [(part.label, part.digest) for part in parts],
        "columns": needed,
        "limit": source.limit,
        "data": [data.mode, data.on_bad_row, data.max_characters, data.negatives],
    }
    folder = cache_dir / "sources" / hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:32]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
                _prepare(Path(unfinished) / "source", name, source, data, parts)
                (Path(unfinished) / "source").rename(folder)
    if rejects is not None:
        rejects.extend(folder / "rejects.jsonl")
    return LoadedSource(
        rows=datasets.Dataset.from_file(str(folder / "rows.arrow")),
        **json.loads((folder / "summary.json").read_text(encoding="utf-8")),
    )


def source_rows(
    name: str, source: SourceConfig, data: DataConfig, needed: tuple[str, ...], cache_dir: Path
) -> Iterator[tuple[str, str, Row | BadRow]]:
    """Yield the rows of a source unchanged, with a label of their file and the unit of their number; nothing is stored.

    Args:
        name: Name of the source, for messages.
        source: Where the rows are.
        data: Its mode decides which formats are allowed.
        needed: The columns to read.
        cache_dir: Folder for downloaded files.

    Raises:
        DataError: A file does not exist, is empty or unreadable.
    """
    for single in source.single:
        for part in _parts(name, single, data, needed, cache_dir):
            row = None
            for row in part.rows():
                yield part.label, part.unit, row
            if row is None:
                raise _empty(name, part)


def _prepare(folder: Path, name: str, source: SourceConfig, data: DataConfig, parts: list[_Part]) -> None:
    """Write rows.arrow, rejects.jsonl and summary.json."""
    import pyarrow as pa

    folder.mkdir()
    text = pa.string()
    fields = {"text": text} if data.mode == "unsupervised" else {"query": text, "positive": text}
    schema = pa.schema(fields if data.mode == "unsupervised" else {**fields, "negatives": pa.list_(text)})
    digest, batch, rejected, reason = hashlib.sha256(), list[Texts](), 0, ""
    with (
        pa.ipc.new_stream(str(folder / "rows.arrow"), schema) as writer,
        (folder / "rejects.jsonl").open("w", encoding="utf-8") as rejects,
    ):
        count = 0
        for part, texts in _checked_rows(name, source, data, parts):
            if isinstance(texts, BadRow):
                rejects.write(reject_line(part.label, texts))
                rejected += 1
                reason = reason or f"{part.label}, {part.unit} {texts.line}: {texts.reason}"
                continue
            digest.update(json.dumps(list(texts.values())).encode() + b"\n")
            batch.append(texts)
            count += 1
            if len(batch) == _BATCH:
                writer.write_batch(pa.RecordBatch.from_pylist(batch, schema))
                batch.clear()
            if count == source.limit:
                break
        if batch:
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema))
    if not count:
        raise DataError(f"data.sources.{name}: all {rejected} rows of {source.path!r} are bad. The first: {reason}")
    summary = {"digest": digest.hexdigest(), "rejected": rejected}
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")


def _checked_rows(
    name: str, source: SourceConfig, data: DataConfig, parts: list[_Part]
) -> Iterator[tuple[_Part, Texts | BadRow]]:
    for part in parts:
        row = None
        for row in part.rows():
            texts = row if isinstance(row, BadRow) else texts_of(row, source, data)
            if isinstance(texts, BadRow) and data.on_bad_row == "error":
                raise DataError(
                    f"data.sources.{name}: {part.label}, {part.unit} {texts.line}: {texts.reason}. Mend the row, or "
                    "set data.on_bad_row=reject to list such rows in rejects.jsonl and continue"
                )
            yield part, texts
        if row is None:
            raise _empty(name, part)


def _empty(name: str, part: _Part) -> DataError:
    return DataError(f"data.sources.{name}: {part.label} is empty: it holds no row")


def _parts(name: str, source: SourceConfig, data: DataConfig, needed: tuple[str, ...], cache_dir: Path) -> list[_Part]:
    """Return the files of a source with one path."""
    path, mode = source.path, data.mode
    assert isinstance(path, str)
    _check_kind(name, source)
    match source.kind:
        case "builtin":
            return [_builtin(name, source, path, needed, mode, cache_dir)]
        case "own":
            rows = partial(read_own, name, source)
            return [_Part(path, digest_of_own_rows(name, source), rows, "row")]
        case "hub":
            return [_hub(name, source, needed)]
        case "url":
            return [_file(name, source, fetch(name, path, cache_dir), needed, mode, cache_dir, address=path)]
        case "file":
            files = _files(name, path)
            if source.sha256 is not None and len(files) > 1:
                raise ConfigError(
                    f"data.sources.{name}.sha256 is the digest of one file, but {path!r} names {len(files)}: name one, "
                    "or leave the digest out"
                )
            return [_file(name, source, file, needed, mode, cache_dir) for file in files]


def _check_kind(name: str, source: SourceConfig) -> None:
    """Check settings that only some kinds of sources take."""
    if source.streaming and source.kind != "hub":
        raise ConfigError(
            f"data.sources.{name}.streaming=true is for data sets of the hub, but {source.path!r} is not one (a folder "
            f"in the hub's layout is one with data.sources.{name}.format=hub): set data.sources.{name}.streaming=false"
        )
    if source.sha256 is not None and source.kind not in ("file", "url"):
        raise ConfigError(f"data.sources.{name}.sha256 is the digest of a file, but {source.path!r} is not a file")


def _files(name: str, path: str) -> list[Path]:
    expanded = Path(path).expanduser()
    if expanded.is_file():
        return [expanded]
    pattern = str(expanded / "**") if expanded.is_dir() else str(expanded)
    found = map(Path, glob(pattern, recursive=True))  # noqa: PTH207 (Path.glob would match hidden files)
    files = sorted(file for file in found if file.is_file())
    if expanded.is_dir():
        files = [file for file in files if format_of(file) is not None]
    if not files:
        hint = f"the folder holds no file of {' '.join(FILE_FORMATS)}" if expanded.is_dir() else "no such file"
        raise DataError(f"data.sources.{name}.path={path!r}: {hint} (working directory {Path.cwd()})")
    return files


def _file(
    name: str,
    source: SourceConfig,
    file: Path,
    needed: tuple[str, ...],
    mode: str,
    cache_dir: Path,
    *,
    address: str | None = None,
) -> _Part:
    label = address or str(file)
    named = Path(urlsplit(address).path) if address else file
    suffix = named.with_suffix("").suffix if named.suffix in COMPRESSED else named.suffix
    kind = FILE_FORMATS.get(suffix) if source.format == "auto" else source.format
    quoted = suffix != ".tsv" if source.quoting == "auto" else source.quoting == "quoted"
    readers: dict[str | None, Reader] = {
        "jsonl": read_json if suffix == ".json" else read_jsonl,
        "csv": partial(read_csv, delimiter="\t" if suffix == ".tsv" else ",", quoted=quoted),
        "parquet": read_parquet,
        "text": read_text,
    }
    if kind not in readers:
        raise DataError(
            f"{label}: the ending {suffix!r} names no format (known: {' '.join(FILE_FORMATS)}); set "
            f"data.sources.{name}.format"
        )
    if kind == "text" and mode == "supervised":
        raise ConfigError(
            f"data.sources.{name} is supervised (data.mode) but reads plain text ({label}), which has no positives: "
            "give JSONL, CSV or parquet, or set data.mode=unsupervised (for this source alone: data.mode=mixed and "
            f"data.sources.{name}.mode=unsupervised)"
        )
    digest = file_digest(file, cache_dir)
    if source.sha256 not in (None, digest):
        fetched = f" (fetched to {file}: delete it to fetch it again)" if address else ""
        raise DataError(
            f"data.sources.{name}: the sha256 of {label} is {digest}, but data.sources.{name}.sha256={source.sha256}: "
            f"the file is damaged or another one{fetched}"
        )
    unit = "row" if kind == "parquet" else "line"
    how = f"csv {'quoted' if quoted else 'plain'}" if kind == "csv" else kind
    return _Part(label, f"{how} {digest}", partial(readers[kind], file, needed), unit)


def _builtin(name: str, source: SourceConfig, path: str, needed: tuple[str, ...], mode: str, cache_dir: Path) -> _Part:
    dataset = path.removeprefix(_BUILTIN)
    split = _SPLITS.get(source.split)
    if dataset not in ("wordnet", "stsb") or split is None:
        raise ConfigError(
            f"data.sources.{name}: no built-in data set {source.path!r} with split {source.split!r}; there are "
            "builtin:wordnet and builtin:stsb, each with the splits train, dev and test"
        )
    if dataset == "wordnet":
        return _file(name, SourceConfig(path=path), wordnet_path(split), needed, mode, cache_dir)
    triplets = stsb_triplets(split)
    digest = hashlib.sha256(json.dumps(triplets).encode()).hexdigest()
    return _Part(f"{source.path} {split}", digest, partial(_numbered, triplets), "row")


def _hub(name: str, source: SourceConfig, needed: tuple[str, ...]) -> _Part:
    label = f"{source.path} {source.subset or ''} {source.split}"
    if source.streaming:
        streamed = stream_hub(name, source, needed)
        return _Part(label, streamed.version, streamed.rows, "row")
    rows = load_hub(name, source, needed)
    return _Part(label, rows._fingerprint, partial(_numbered, rows), "row")


def _numbered(rows: Any) -> Iterator[Row]:
    for number, fields in enumerate(rows, start=1):
        yield Row(number, fields)
