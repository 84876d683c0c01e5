"""Feeds a recipe to Lightning step by step, and goes on where a checkpoint stopped."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningDataModule

from grace_exp.data.batch import Instance, TextBatch
from grace_exp.data.curriculum import CurriculumSchedule
from grace_exp.data.recipes import Recipe
from grace_exp.errors import ConfigError


class GraceDataModule(LightningDataModule):
    """Gives the training module one `TextBatch` a step, in one epoch of `steps` steps.

    Lightning counts the steps of a resumed epoch on from its checkpoint but does not save where the data stands, so
    that is kept here: the training module calls `completed` at the end of every training step (before the callbacks
    that save checkpoints), and `trainer.fit(..., ckpt_path=...)` with `max_epochs=1` then visits the remaining steps.

    Attributes:
        position: Number of completed steps, and so the next step.
    """

    def __init__(self, recipe: Recipe, *, batch_size: int, steps: int, mini_batch_size: int | None = None) -> None:
        """Makes the schedule.

        Args:
            recipe: The instances.
            batch_size: Instances a step, over all processes.
            steps: Where training ends, counted from the run's beginning.
            mini_batch_size: Instances an update, over all processes; None: the whole batch.

        Raises:
            DataError: A source has fewer rows than one step takes of it.
        """
        super().__init__()
        self.position = 0
        self._recipe = recipe
        self._batch_size = batch_size
        self._mini_batch_size = mini_batch_size or batch_size
        self._schedule = recipe.schedule(batch_size, steps)

    def missed(self, found: Mapping[int, float]) -> dict[str, float]:
        """Takes in how often the rationales of a step failed to find their instances, for `data.curriculum`.

        Called within the step, with the same figures in all processes.

        Args:
            found: Share of the rationales that missed, by the instance's index.

        Returns:
            `curriculum/*`.
        """
        if not isinstance(self._schedule, CurriculumSchedule):
            return {}
        known = self._schedule.difficulties
        drawn = known.of(list(found))
        known.note(found)
        return {"curriculum/difficulty_drawn": float(drawn.mean(dtype="float64")), **known.metrics()}

    def completed(self, step: int) -> None:
        """Notes that the step with this number (`TextBatch.step`) is done."""
        self.position = step + 1

    def batch(self, step: int) -> TextBatch:
        """This process's share of a step: a contiguous part of every mini-batch, as large as the others'.

        Raises:
            ConfigError: The processes do not divide the batch.
            IndexError: Under `data.curriculum`, a step whose predecessor is not done, or that is done itself.
        """
        if isinstance(self._schedule, CurriculumSchedule) and step not in (0, self.position):
            raise IndexError(f"data.curriculum: step {step} is drawn from what the {step} steps before it have found")
        rank, processes = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        share, rest = divmod(self._mini_batch_size, processes)
        if rest:
            raise ConfigError(
                f"objective.mini_batch_size={self._mini_batch_size} is not a multiple of the {processes} processes"
            )
        # Of every mini-batch its part, so that an update sees the same instances however many processes there are.
        starts = range(rank * share, self._batch_size, self._mini_batch_size)
        indices = [index for start in starts for index in self._schedule[step][start : start + share]]
        return TextBatch(step=step, instances=[self._recipe[index] for index in indices])

    def another(self, index: int, seed: int, without: Collection[int]) -> Instance | None:
        """As `Recipe.another`: for steps that sample more instances than the schedule gives them."""
        return self._recipe.another(index, seed, without)

    def train_dataloader(self) -> "StepLoader":
        """The steps from `position` on."""
        return StepLoader(self, len(self._schedule))

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Puts the step's texts in the place of its number, see `StepLoader`."""
        return self.batch(batch) if isinstance(batch, int) else batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leaves the batch as it is: it holds text."""
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The position, and what it is a position in; under `data.curriculum` what is known of the instances."""
        state = {"step": self.position, **self._identity()}
        if isinstance(self._schedule, CurriculumSchedule):
            state["difficulties"] = self._schedule.difficulties.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the position of a checkpoint.

        Raises:
            ConfigError: The checkpoint's run drew other instances at its steps.
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
    """Hands out the numbers of the steps that remain; the DataModule turns each into its `TextBatch`.

    Numbers, because Lightning looks into every batch for tensors to convert before it calls any hook, and refuses
    frozen dataclasses in reduced precision.

    Its length is that of the whole run, because Lightning compares it with a count that a checkpoint continues. It has
    a state so that Lightning knows it can be resumed; the position itself is the DataModule's.
    """

    def __init__(self, datamodule: GraceDataModule, steps: int) -> None:
        """Made by `GraceDataModule.train_dataloader`."""
        self._datamodule = datamodule
        self._steps = steps

    def __len__(self) -> int:
        """Steps of the whole run, done or not."""
        return self._steps

    def __iter__(self) -> Iterator[int]:
        """From the DataModule's position on."""
        return iter(range(self._datamodule.position, self._steps))

    def state_dict(self) -> dict[str, Any]:
        """The DataModule's."""
        return self._datamodule.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The DataModule's."""
        self._datamodule.load_state_dict(state_dict)
