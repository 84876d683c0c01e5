"""What the policy wrote: a table of rollouts with their rewards, in the run folder and on W&B."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.fabric.utilities.rank_zero import rank_zero_only

from grace_exp.tracking.atomic import atomic_path

if TYPE_CHECKING:
    import wandb

TABLE = "samples/rollouts"
"""Key of the W&B table."""

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
"""Columns of every table and their arrow types; `*_tokens` are counts. Other columns are reward figures (float64)."""


class SamplesTable:
    """A folder of parquet files, one for each logged step; `pandas.read_parquet(folder)` reads them as one table."""

    def __init__(self, path_dir: Path) -> None:
        """Use `path_dir`, which is made with the first rows."""
        self.path_dir = path_dir

    @rank_zero_only
    def log(self, step: int, rows: Sequence[Mapping[str, Any]], run: "wandb.Run | None" = None) -> None:
        """Write the rollouts of one step; a second call for the same step replaces them.

        Args:
            step: Put into column `step`.
            rows: One mapping a rollout with the keys of `COLUMNS` but `step`, and one for each reward figure: a term's
                name, `total`, `final`, `advantage`. None, or a missing key, where a rollout has no such figure (anchors
                have no advantage).
            run: Also show the rows there, as table `samples/rollouts`.

        Raises:
            KeyError: A row lacks one of `COLUMNS`.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        figures = list(dict.fromkeys(name for row in rows for name in row if name not in COLUMNS))
        columns: dict[str, list[Any]] = {"step": [step] * len(rows)}
        columns |= {name: [row[name] for row in rows] for name in COLUMNS if name != "step"}
        columns |= {name: [row.get(name) for row in rows] for name in figures}
        # Types are given, not inferred: a column that happens to be empty in one file would not fit the others.
        schema = pa.schema([(name, COLUMNS.get(name, "float64")) for name in columns])
        with atomic_path(self.path_dir / f"step-{step:06d}.parquet") as temporary:
            pq.write_table(pa.table(columns, schema=schema), temporary)
        if run is not None:
            self._log_to(run, step, columns)

    @staticmethod
    def _log_to(run: "wandb.Run", step: int, columns: Mapping[str, list[Any]]) -> None:
        import wandb

        data = [list(row) for row in zip(*columns.values(), strict=True)]
        if step >= run.starting_step:
            run.log({TABLE: wandb.Table(columns=list(columns), data=data)}, step=step)

    @rank_zero_only
    def truncate(self, step: int) -> None:
        """Delete the files of `step` and after: a resumed run writes them again."""
        for path in self.path_dir.glob("step-*.parquet"):
            if int(path.stem.removeprefix("step-")) >= step:
                path.unlink()
