"""Tables of rationales with their rewards, in the run folder and on W&B."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.fabric.utilities.rank_zero import rank_zero_only

from grace_exp.tracking.atomic import atomic_path

if TYPE_CHECKING:
    import wandb

SAMPLES_FOLDER = "samples"
EVOLUTION_FOLDER = "evolution"
SAMPLES_TABLE = "samples/rollouts"
EVOLUTION_TABLE = "samples/evolution"
"""Keys of the W&B tables."""

COLUMNS = {
    "step": "int64",
    "instance": "int64",
    "source": "string",
    "role": "string",
    "text": "string",
    "prompt_tokens": "int64",
    "rationale": "string",
    "rationale_tokens": "int64",
    "finish_reason": "string",
}
"""Columns of a table with their arrow types; `*_tokens` are counts. Other columns are rewards (float64)."""
EVOLUTION_COLUMNS = COLUMNS | {"sample": "int64", "neighbours": "string"}
"""Columns of the evolution table, which has the same texts over time. `step` counts the steps done, so 0 is before
training; `sample` numbers the rationales of a text; `neighbours` are the nearest other texts of the table with their
cosines, as JSON."""


class SamplesTable:
    """A folder of parquet files, one for each logged step; `pandas.read_parquet(folder)` reads them as one table."""

    def __init__(self, path_dir: Path, key: str = SAMPLES_TABLE, columns: Mapping[str, str] = COLUMNS) -> None:
        """Use `path_dir`, which is created with the first rows.

        Args:
            path_dir: The folder.
            key: Key of the W&B table.
            columns: Columns with their arrow types; every row has them.
        """
        self.path_dir = path_dir
        self._key = key
        self._types = columns
        self._shown: wandb.Table | None = None

    @rank_zero_only
    def log(
        self,
        step: int,
        rows: Sequence[Mapping[str, Any]],
        run: "wandb.Run | None" = None,
        *,
        wandb_step: int | None = None,
    ) -> None:
        """Write the rollouts of one step; a second call for the same step replaces them.

        Args:
            step: Value of the column `step`.
            rows: One mapping per rollout, with the keys of the columns except `step`, and one key for each reward
                value: a term's name, `total`, `final`, `advantage`. A value is None or missing if a rollout has none
                    (anchors have no
                advantage).
            run: A W&B run, which also gets the rows, added to those of earlier steps.
            wandb_step: W&B's step, if it differs.

        Raises:
            KeyError: A row lacks one of the columns.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        figures = list(dict.fromkeys(name for row in rows for name in row if name not in self._types))
        columns: dict[str, list[Any]] = {"step": [step] * len(rows)}
        columns |= {name: [row[name] for row in rows] for name in self._types if name != "step"}
        columns |= {name: [row.get(name) for row in rows] for name in figures}
        # Types are given, not inferred, because a column that is empty in one file would get another type there.
        schema = pa.schema([(name, self._types.get(name, "float64")) for name in columns])
        with atomic_path(self.path_dir / f"step-{step:06d}.parquet") as temporary:
            pq.write_table(pa.table(columns, schema=schema), temporary)
        if run is not None:
            self._log_to(run, step if wandb_step is None else wandb_step, columns)

    def _log_to(self, run: "wandb.Run", step: int, columns: Mapping[str, list[Any]]) -> None:
        import wandb

        if step < run.starting_step:
            return
        if self._shown is None:
            # W&B shows only the last table that was logged under a key, so this one grows.
            self._shown = wandb.Table(columns=list(columns), log_mode="INCREMENTAL", allow_mixed_types=True)
        for row in zip(*columns.values(), strict=True):
            self._shown.add_data(*row)
        run.log({self._key: self._shown}, step=step)

    @rank_zero_only
    def truncate(self, step: int) -> None:
        """Delete the files of `step` and after, because a resumed run writes them again."""
        for path in self.path_dir.glob("step-*.parquet"):
            if int(path.stem.removeprefix("step-")) >= step:
                path.unlink()
