"""Record the command line as Hydra does, but only once the folder belongs to the run."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

FOLDER = ".hydra"


def record_command(settings: DictConfig, hydra: Any, run_dir: Path) -> None:
    """Write `config.yaml`, `hydra.yaml` and `overrides.yaml` into `<run_dir>/.hydra`.

    Hydra itself would write them before the owner of the folder is checked (so `hydra.output_subdir` is null).

    Args:
        settings: The composed settings, not resolved.
        hydra: Hydra's own settings.
        run_dir: The run's folder.
    """
    folder = run_dir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(settings, folder / "config.yaml")
    OmegaConf.save(OmegaConf.create({"hydra": hydra}), folder / "hydra.yaml")
    OmegaConf.save(hydra.overrides.task, folder / "overrides.yaml")
