"""What a W&B run stores besides metrics and tables: artifacts, and summary values with their intervals."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import wandb


def log_config(run: "wandb.Run", run_dir: Path) -> None:
    """Store the resolved settings and their provenance as artifact `config-<run id>`."""
    _log(run, "config", [run_dir / "config.yaml", run_dir / "provenance.json"])


def log_evaluation(run: "wandb.Run", run_dir: Path) -> None:
    """Store the evaluation files, with every item's score, as artifact `evaluation-<run id>`, if there are any."""
    _log(run, "evaluation", [run_dir / "evaluation", run_dir / "summary.json"])


def log_export(run: "wandb.Run", folders: Sequence[Path], best: Path | None) -> None:
    """Store the trained model as artifact `model-<run id>`, alias `last`.

    Args:
        run: The W&B run.
        folders: Folders of the exports.
        best: The checkpoint of the best step, which gets the alias `best`; None: the last weights count as the best,
            and have both aliases.
    """
    if best is not None:
        _log(run, "model", [best], aliases=["best"])
    _log(run, "model", folders, aliases=["last"] if best is not None else ["last", "best"])


def set_summary(run: "wandb.Run", heldout: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> None:
    """Write held-out scores into the run's summary, as `heldout/<set>/<figure>` with `.../low` and `.../high`.

    Args:
        run: The W&B run.
        heldout: Value, low and high by set and figure; see `summary.json`.
    """
    for name, figures in heldout.items():
        for key, score in figures.items():
            run.summary[f"heldout/{name}/{key}"] = score["value"]
            for end in ("low", "high"):
                if score[end] is not None:
                    run.summary[f"heldout/{name}/{key}/{end}"] = score[end]


def _log(run: "wandb.Run", kind: str, paths: Sequence[Path], aliases: list[str] | None = None) -> None:
    import wandb

    present = [path for path in paths if path.exists()]
    if not present:
        return
    artifact: Any = wandb.Artifact(f"{kind}-{run.id}", type=kind)
    for path in present:
        # File by file, because wandb announces whole folders on the terminal. Not copied: the files of a finished run
        # stay.
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        for file in files:
            name = str(file.relative_to(path.parent))
            artifact.add_file(str(file), name=name, policy="immutable", skip_cache=True)
    run.log_artifact(artifact, aliases=aliases)
