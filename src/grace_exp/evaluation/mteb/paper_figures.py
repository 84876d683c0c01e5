"""The paper's results on MTEB English v1, to compare with a model's own."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from grace_exp.config.compose import conf_dir
from grace_exp.evaluation.mteb.mteb_results import CATEGORIES, V1_COUNTS, averages


@dataclass(frozen=True)
class PaperRow:
    """A row of the paper's tables.

    Attributes:
        setting: `supervised` or `unsupervised`; untrained models are listed as `supervised`.
        backbone: Such as `Qwen2.5-1.5B-Instruct`.
        method: `base`, `reasoning`, `contrastive`, `simcse` or `grace`.
        figures: Points by category, and by average: `average_over_tasks` and `average_over_categories` computed from
            them, `average_as_in_paper` as printed.
    """

    setting: str
    backbone: str
    method: str
    figures: dict[str, float]

    @property
    def title(self) -> str:
        """One line."""
        return f"arXiv 2510.04506: {self.backbone}, {self.method}, {self.setting}"


def paper_table() -> list[dict[str, str]]:
    """Return all rows of `experiments/paper/mteb_results.csv`; empty outside a checkout, which has the file."""
    path = conf_dir().parent / "experiments" / "paper" / "mteb_results.csv"
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines())) if path.is_file() else []


def paper_row(backbone: str, method: str, setting: str) -> PaperRow | None:
    """Return the row of a backbone (its hub name, or the last part of it) and method; None if the paper has none."""
    name = backbone.rpartition("/")[2]
    for row in paper_table():
        if (row["backbone"], row["method"], row["setting"]) == (name, method, setting):
            means = {category: float(row[category]) for category in CATEGORIES.values()}
            printed = {"average_as_in_paper": float(row["reported_avg"])}
            return PaperRow(setting, name, method, means | averages(means, V1_COUNTS) | printed)
    return None


def paper_row_of_run(settings: Mapping[str, Any]) -> PaperRow | None:
    """Return the row for a training run's resolved settings."""
    return paper_row(str(settings["backbone"]["path"]), settings["method"]["name"], settings["data"]["mode"])


def paper_row_of_folder(folder: Path) -> PaperRow | None:
    """Return the row of a run folder or of an export in it; None for other folders."""
    for place in (folder, folder.resolve().parent.parent):
        path = place / "config.yaml"
        if path.is_file() and (place / "provenance.json").is_file():
            return paper_row_of_run(yaml.safe_load(path.read_text(encoding="utf-8")))
    return None
