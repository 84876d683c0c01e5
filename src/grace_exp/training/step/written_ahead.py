"""The rationales of the next step, written on a separate thread while this step trains."""

import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

import torch.distributed as dist

from grace_exp.data.batch import Role, TextBatch
from grace_exp.errors import GraceError
from grace_exp.rollout.protocol import RolloutEngine
from grace_exp.training.step.replay import plain_rollouts, stored_rollouts
from grace_exp.training.step.rollouts import Rollouts, StepRequests


class WrittenAhead:
    """Holds the rationales of at most one step, which are one step old when they are trained.

    The order of a step is: `take` its rationales, `start` the next step's, train, `settle`, and only then send new
    weights to the engine. So no request ever uses two versions of the weights. Between `settle` and the next `start`
    the engine is free, also for evaluations.
    """

    def __init__(self, engine: RolloutEngine) -> None:
        """Use `engine`, which may be called from another thread."""
        self._engine = engine
        self._step: int | None = None
        self._under_way: Future[Rollouts] | None = None
        self._rollouts: Rollouts | None = None
        self.seconds = 0.0
        """Seconds that the held rationales took to write."""

    @property
    def step(self) -> int | None:
        """The step whose rationales are held or being written; None: no step's."""
        return self._step

    def start(self, requests: StepRequests) -> None:
        """Start to write, and return at once.

        The thread is a daemon, so a request that is never answered does not keep a failed process alive.
        """
        assert self._step is None, f"step {self._step} is written ahead already"
        self._step, self._under_way = requests.step, Future()
        arguments = requests, self._under_way
        threading.Thread(target=self._write, args=arguments, name="rollouts-ahead", daemon=True).start()

    def settle(self) -> None:
        """Wait until no request is being answered.

        Raises:
            Exception: An error of the engine.
        """
        if self._under_way is not None:
            under_way, self._under_way = self._under_way, None
            self._rollouts = under_way.result()

    def take(self, batch: TextBatch) -> Rollouts | None:
        """Return the rationales for `batch`, and hold them no longer; None: none are held.

        In a run that was resumed with another number of processes, these are this process's instances among all that
        are held.

        Raises:
            GraceError: Rationales of another step are held.
        """
        self.settle()
        if self._rollouts is None:
            return None
        held = {written.instance.index: written for written in self._rollouts.instances}
        indices = [instance.index for instance in batch.instances]
        if self._step != batch.step or not held.keys() >= set(indices):
            raise GraceError(
                f"step {batch.step} finds rationales that were written ahead for other instances, of step {self._step}"
            )
        rollouts = self._rollouts.only([held[index] for index in indices])
        self._step = self._rollouts = None
        return rollouts

    def _write(self, requests: StepRequests, result: Future[Rollouts]) -> None:
        start = time.perf_counter()
        try:
            rollouts = requests.answered(self._engine.generate(requests.requests))
            self.seconds = time.perf_counter() - start
            result.set_result(rollouts)
        except BaseException as error:
            result.set_exception(error)

    def state_dict(self) -> dict[str, Any] | None:
        """Return the rationales that all processes hold, for a checkpoint; None: none. All processes must call it.

        They are stored because they cannot be written again: the weights that wrote them are gone after the update.
        """
        self.settle()
        if self._rollouts is None:
            return None
        instances = [plain_rollouts(written) for written in self._rollouts.instances]
        if dist.is_initialized():
            parts: list[list[dict[str, Any]]] = [[]] * dist.get_world_size()
            dist.all_gather_object(parts, instances)
            instances = [written for part in parts for written in part]
        return {
            "step": self._step,
            "seconds": self.seconds,
            "instances": instances,
            "roles": [role.value for role in self._rollouts.roles],
            "group_size": self._rollouts.group_size,
        }

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Restore what `state_dict` returned."""
        self._under_way = None
        if state is None:
            self._step = self._rollouts = None
            return
        self._step, self.seconds = state["step"], state["seconds"]
        self._rollouts = Rollouts(
            [stored_rollouts(row) for row in state["instances"]],
            tuple(Role(role) for role in state["roles"]),
            state["group_size"],
        )
