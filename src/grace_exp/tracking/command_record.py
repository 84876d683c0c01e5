"""What was asked for on the command line, as Hydra keeps it: written once the folder is the run's."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

FOLDER = ".hydra"


def record_command(settings: DictConfig, hydra: Any, run_dir: Path) -> None:
    """Write `config.yaml`, `hydra.yaml` and `overrides.yaml` into `<run_dir>/.hydra`.

    Hydra itself would do so before anyone can look whose folder it is (`hydra.output_subdir` is null for that).

    Args:
        settings: As composed, not resolved.
        hydra: Hydra's own settings.
        run_dir: The run's folder.
    """
    folder = run_dir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(settings, folder / "config.yaml")
    OmegaConf.save(OmegaConf.create({"hydra": hydra}), folder / "hydra.yaml")
    OmegaConf.save(hydra.overrides.task, folder / "overrides.yaml")
