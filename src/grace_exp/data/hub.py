"""Data sets of the hub, or of its cache on this machine."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from grace_exp.config.data import SourceConfig
from grace_exp.data.lines import Row
from grace_exp.errors import DataError

if TYPE_CHECKING:
    import datasets

_PROBE_SECONDS = 10.0


def load_hub(name: str, source: SourceConfig, columns: tuple[str, ...]) -> "datasets.Dataset":
    """Loads the needed columns of a hub data set (or of a folder in the hub's layout).

    Args:
        name: Name of the source in the recipe, for messages.
        source: Its hub name, subset and split.
        columns: The columns that must exist.

    Raises:
        DataError: The data set cannot be loaded, or lacks a column.
    """
    import datasets

    assert isinstance(source.path, str)
    what = _described(source)
    try:
        with _offline_if_unreachable(source.path):
            loaded = datasets.load_dataset(source.path, source.subset, split=source.split)
    except Exception as error:  # each layer of the library (network, hub, file format) raises its own errors
        raise DataError(
            f"data.sources.{name}: {what} could not be loaded: {type(error).__name__}: {error}\n"
            f"Without the hub give local files: data.sources.{name}.path=FILE (.jsonl .json .csv .tsv .parquet .txt)"
        ) from error
    dataset = cast("datasets.Dataset", loaded)
    _check_columns(name, what, columns, dataset.column_names)
    return dataset.select_columns(list(columns))


@dataclass(frozen=True)
class StreamedRows:
    """A hub data set that is read over the network.

    Attributes:
        version: A version of its files; equal as long as they are unchanged.
        rows: Reads the rows from the beginning.
    """

    version: str
    rows: Callable[[], Iterator[Row]]


def stream_hub(name: str, source: SourceConfig, columns: tuple[str, ...]) -> StreamedRows:
    """Return the rows as `load_hub` does, but over the network: no file is kept, and none is read to its end.

    Args:
        name: Name of the source in the recipe, for messages.
        source: Its hub name, subset and split.
        columns: The columns that must exist.

    Raises:
        DataError: The hub does not answer, or the data set lacks the split or a column. Reading rows may raise it too.
    """
    import datasets

    assert isinstance(source.path, str)
    what = _described(source)
    if not Path(source.path).is_dir() and (datasets.config.HF_HUB_OFFLINE or not _hub_answers(source.path)):
        why = "HF_HUB_OFFLINE forbids asking the hub" if datasets.config.HF_HUB_OFFLINE else "the hub does not answer"
        raise DataError(
            f"data.sources.{name}: {what} cannot be streamed: {why}. What the hub's cache holds is read with "
            f"data.sources.{name}.streaming=false, local files with data.sources.{name}.path=FILE"
        )
    try:
        builder = datasets.load_dataset_builder(source.path, source.subset)
        streamed = builder.as_streaming_dataset(source.split)
        found = streamed.column_names or list(next(iter(streamed), {}))
    except Exception as error:  # as in load_hub
        raise DataError(
            f"data.sources.{name}: {what} could not be streamed: {type(error).__name__}: {error}"
        ) from error
    _check_columns(name, what, columns, found)
    version = f"streamed {builder.config_id} {builder.config.version} {builder.hash} {source.split}"
    return StreamedRows(version, partial(_streamed, name, what, streamed.select_columns(list(columns))))


def _streamed(name: str, what: str, rows: "datasets.IterableDataset") -> Iterator[Row]:
    number = 0
    try:
        for number, fields in enumerate(rows, start=1):
            yield Row(number, fields)
    except Exception as error:  # the library has retried for minutes, or a file is damaged
        raise DataError(
            f"data.sources.{name}: {what}, after row {number}: {type(error).__name__}: {error}. Start again, or keep "
            f"its files: data.sources.{name}.streaming=false"
        ) from error


def _described(source: SourceConfig) -> str:
    return f"the hub data set {source.path!r} (subset {source.subset!r}, split {source.split!r})"


def _check_columns(name: str, what: str, columns: tuple[str, ...], found: list[str]) -> None:
    missing = [column for column in columns if column not in found]
    if missing:
        raise DataError(
            f"data.sources.{name}: {what} has no column {missing[0]!r}; it has "
            f"{', '.join(map(repr, found))}. Name the right one in query=, positive=, negative= or text="
        )


@contextmanager
def _offline_if_unreachable(path: str) -> Iterator[None]:
    """Ask the hub once; if it does not answer, only use its cache (the library itself would try for half a minute)."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or not (Path(path).is_dir() or _hub_answers(path))
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _hub_answers(path: str) -> bool:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().dataset_info(path, timeout=_PROBE_SECONDS)
    except HfHubHTTPError:
        return True  # the hub answered, though not as wished; load_dataset reports what it means
    except Exception:  # any failure on the way: name, route, time-out
        return False
    return True
