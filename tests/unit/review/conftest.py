from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from grace_exp.config.compose import compose_config, to_dict
from grace_exp.tracking.metrics_csv import MetricsCsv
from grace_exp.tracking.summary import write_json_atomic

MakeRun = Callable[..., Path]


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return to_dict(compose_config(["+experiment=demo_tiny"], tmp_path_factory.mktemp("settings")))


@pytest.fixture
def make_run(settings: dict[str, Any]) -> MakeRun:
    """Writes what a run leaves: settings, metrics, and with `heldout` a summary."""

    def made(
        folder: Path,
        metrics: Mapping[str, Sequence[float]],
        *,
        heldout: Mapping[str, Any] | None = None,
        seed: int = 0,
        weight: float = 1.0,
    ) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        terms = settings["reward"]["terms"]
        terms = terms | {"positive": terms["positive"] | {"weight": weight}}
        sets = {name: {"kind": "sts", "source": "stsb", "split": "dev", "size": None} for name in heldout or {}}
        changed = settings | {
            "seed": seed,
            "reward": settings["reward"] | {"terms": terms},
            "evaluation": settings["evaluation"] | {"sets": sets},
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(changed))
        csv = MetricsCsv(folder / "metrics.csv")
        count = max(map(len, metrics.values()))
        for step in range(count):
            csv.log_metrics({name: values[step] for name, values in metrics.items() if step < len(values)}, step)
        if heldout is not None:
            summary = {"steps": count, "heldout": heldout, "seconds": {}, "peak_memory_gib": {}}
            write_json_atomic(folder / "summary.json", summary)
        return folder

    return made
