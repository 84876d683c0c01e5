"""Data sets of the hub, or of its cache on this machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

from grace_exp.config.data import SourceConfig
from grace_exp.errors import DataError

if TYPE_CHECKING:
    import datasets

_PROBE_SECONDS = 10.0


def load_hub(name: str, source: SourceConfig, columns: tuple[str, ...]) -> "datasets.Dataset":
    """Loads the needed columns of a hub data set (or of a folder in the hub's layout).

    Args:
        name: Of the source in the recipe, for messages.
        source: Its hub name, subset and split.
        columns: Which must be there.

    Raises:
        DataError: The data set cannot be had, or has no such column.
    """
    import datasets

    assert isinstance(source.path, str)
    what = f"{source.path!r} (subset {source.subset!r}, split {source.split!r})"
    try:
        with _offline_if_unreachable(source.path):
            loaded = datasets.load_dataset(source.path, source.subset, split=source.split)
    except Exception as error:  # network, hub, file format: the library raises what each of its layers raises
        raise DataError(
            f"data.sources.{name}: the hub data set {what} could not be loaded: {type(error).__name__}: {error}\n"
            f"Without the hub give local files: data.sources.{name}.path=FILE (.jsonl .json .csv .tsv .parquet .txt)"
        ) from error
    dataset = cast("datasets.Dataset", loaded)
    missing = [column for column in columns if column not in dataset.column_names]
    if missing:
        raise DataError(
            f"data.sources.{name}: the hub data set {what} has no column {missing[0]!r}; it has "
            f"{', '.join(map(repr, dataset.column_names))}. Name the right one in query=, positive=, negative= or text="
        )
    return dataset.select_columns(list(columns))


@contextmanager
def _offline_if_unreachable(path: str) -> Iterator[None]:
    """Asks the hub once; without an answer only its cache is used (the library itself would try for half a minute)."""
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
        return True  # an answer, if not the wished one; load_dataset says what it means
    except Exception:  # whatever kept the answer away: no name, no route, no time
        return False
    return True
