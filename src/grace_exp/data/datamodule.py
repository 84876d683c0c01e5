"""Feeds a recipe to Lightning step by step, and continues from a checkpoint."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningDataModule

from grace_exp.data.batch import Instance, TextBatch
from grace_exp.data.curriculum import CurriculumSchedule
from grace_exp.data.recipes import Recipe
from grace_exp.errors import ConfigError


class GraceDataModule(LightningDataModule):
    """Gives the training module one `TextBatch` per step, in one epoch of `steps` steps.

    Lightning counts the steps of a resumed epoch on from its checkpoint, but does not save the position in the data.
    This class keeps it: the training module calls `completed` at the end of every training step (before the callbacks
    that save checkpoints), and `trainer.fit(..., ckpt_path=...)` with `max_epochs=1` then runs the remaining steps.

    Attributes:
        position: Number of completed steps, which is also the number of the next step.
    """

    def __init__(self, recipe: Recipe, *, batch_size: int, steps: int, mini_batch_size: int | None = None) -> None:
        """Makes the schedule.

        Args:
            recipe: The instances.
            batch_size: Instances per step, over all processes.
            steps: Number of the step at which training ends, counted from the run's beginning.
            mini_batch_size: Instances per update, over all processes; None: the whole batch.

        Raises:
            DataError: A source has fewer rows than one step takes from it.
        """
        super().__init__()
        self.position = 0
        self._recipe = recipe
        self._batch_size = batch_size
        self._mini_batch_size = mini_batch_size or batch_size
        self._schedule = recipe.schedule(batch_size, steps)

    def missed(self, found: Mapping[int, float]) -> dict[str, float]:
        """Records how often the rationales of a step failed to find their instances, for `data.curriculum`.

        It is called within the step, with the same values in all processes.

        Args:
            found: Share of the rationales that missed, by the instance's index.

        Returns:
            The metrics `curriculum/*`.
        """
        if not isinstance(self._schedule, CurriculumSchedule):
            return {}
        known = self._schedule.difficulties
        drawn = known.of(list(found))
        known.note(found)
        return {"curriculum/difficulty_drawn": float(drawn.mean(dtype="float64")), **known.metrics()}

    def completed(self, step: int) -> None:
        """Records that the step with this number (`TextBatch.step`) is done."""
        self.position = step + 1

    def batch(self, step: int) -> TextBatch:
        """Returns this process's share of a step: an equally large contiguous part of every mini-batch.

        Raises:
            ConfigError: The processes do not divide the batch.
            IndexError: Under `data.curriculum`: the step before is not done yet, or this step is done already.
        """
        if isinstance(self._schedule, CurriculumSchedule) and step not in (0, self.position):
            raise IndexError(f"data.curriculum: step {step} is drawn from what the {step} steps before it have found")
        rank, processes = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        share, rest = divmod(self._mini_batch_size, processes)
        if rest:
            raise ConfigError(
                f"objective.mini_batch_size={self._mini_batch_size} is not a multiple of the {processes} processes"
            )
        # A part of every mini-batch, so that an update sees the same instances for any number of processes.
        starts = range(rank * share, self._batch_size, self._mini_batch_size)
        indices = [index for start in starts for index in self._schedule[step][start : start + share]]
        return TextBatch(step=step, instances=[self._recipe[index] for index in indices])

    def another(self, index: int, seed: int, without: Collection[int]) -> Instance | None:
        """Returns an instance as `Recipe.another` does; a step uses it to replace an instance of the schedule."""
        return self._recipe.another(index, seed, without)

    def train_dataloader(self) -> "StepLoader":
        """Returns a loader of the steps from `position` on."""
        return StepLoader(self, len(self._schedule))

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Replaces the step's number by its texts, see `StepLoader`."""
        return self.batch(batch) if isinstance(batch, int) else batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Returns the batch unchanged, because it holds text."""
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Returns the position and what it refers to; under `data.curriculum` also the difficulties of instances."""
        state = {"step": self.position, **self._identity()}
        if isinstance(self._schedule, CurriculumSchedule):
            state["difficulties"] = self._schedule.difficulties.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the position of a checkpoint.

        Raises:
            ConfigError: The checkpoint's run drew other instances in its steps.
        """
        differing = [
            f"{key} was {state_dict[key]} and is {value}"
            for key, value in self._identity().items()
            if state_dict[key] != value
        ]
        if differing:
            raise ConfigError(
                f"the checkpoint cannot be resumed with this data, its steps would differ: {'; '.join(differing)}. "
                "Resume with the run's own settings, or start a new run from its exported model"
            )
        self.position = state_dict["step"]
        if isinstance(self._schedule, CurriculumSchedule):
            self._schedule.difficulties.load_state_dict(state_dict["difficulties"])

    def _identity(self) -> dict[str, Any]:
        return {
            "data fingerprint": self._recipe.fingerprint,
            "seed": self._recipe.seed,
            "job.batch_size": self._batch_size,
        }


class StepLoader:
    """Gives the numbers of the remaining steps; the DataModule turns each into its `TextBatch`.

    It gives numbers because Lightning searches every batch for tensors to convert before it calls any hook, and refuses
    frozen dataclasses in reduced precision.

    The length is that of the whole run, because Lightning compares it with a count that a checkpoint continues. The
    loader has a state so that Lightning accepts it as resumable; the DataModule keeps the position.
    """

    def __init__(self, datamodule: GraceDataModule, steps: int) -> None:
        """Is called by `GraceDataModule.train_dataloader`."""
        self._datamodule = datamodule
        self._steps = steps

    def __len__(self) -> int:
        """Returns the number of steps of the whole run, done or not."""
        return self._steps

    def __iter__(self) -> Iterator[int]:
        """Yields the steps from the DataModule's position on."""
        return iter(range(self._datamodule.position, self._steps))

    def state_dict(self) -> dict[str, Any]:
        """Returns the DataModule's state."""
        return self._datamodule.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the DataModule's state."""
        self._datamodule.load_state_dict(state_dict)
