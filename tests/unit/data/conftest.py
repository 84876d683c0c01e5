from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grace_exp.config.data import DataConfig, SourceConfig
from grace_exp.data.rows import RejectLog
from grace_exp.data.sources import LoadedSource, load_source


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., LoadedSource]:
    """Loads one source named `s`: keywords of SourceConfig and DataConfig, `rejects` a path."""

    def load(
        path: Path | str,
        *,
        rejects: Path | None = None,
        mode: str = "supervised",
        on_bad_row: str = "error",
        max_characters: int | None = None,
        negatives: int = 1,
        **source: Any,
    ) -> LoadedSource:
        config = SourceConfig(path=str(path), **source)
        data = DataConfig(
            name="d",
            mode=mode,
            sources={"s": config},
            on_bad_row=on_bad_row,
            max_characters=max_characters,
            negatives=negatives,
        )
        return load_source("s", config, data, RejectLog(rejects) if rejects else None, tmp_path / "cache")

    return load
