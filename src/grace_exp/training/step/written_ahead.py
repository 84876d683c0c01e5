"""The rationales of the next step, written on a thread of their own while this step trains."""

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
    """Holds the rationales of one step at most: what is written ahead is one step old when it is trained.

    The order of a step: `take` what was written for it, `start` the next, train, `settle`, and only then new weights
    go to the engine. So no request ever sees two versions of the weights, and between `settle` and the next `start`
    the engine is free, for evaluations too.
    """

    def __init__(self, engine: RolloutEngine) -> None:
        """Write with `engine`, which may be called from another thread."""
        self._engine = engine
        self._step: int | None = None
        self._under_way: Future[Rollouts] | None = None
        self._rollouts: Rollouts | None = None
        self.seconds = 0.0
        """What the rationales that are held took to write."""

    @property
    def step(self) -> int | None:
        """Whose rationales are held or under way; None: nobody's."""
        return self._step

    def start(self, requests: StepRequests) -> None:
        """Begin to write, and come back at once.

        The thread is a daemon: a request that is never answered does not keep alive a process that has failed.
        """
        assert self._step is None, f"step {self._step} is written ahead already"
        self._step, self._under_way = requests.step, Future()
        arguments = requests, self._under_way
        threading.Thread(target=self._write, args=arguments, name="rollouts-ahead", daemon=True).start()

    def settle(self) -> None:
        """Wait until nothing is under way.

        Raises:
            Exception: What the engine raised.
        """
        if self._under_way is not None:
            under_way, self._under_way = self._under_way, None
            self._rollouts = under_way.result()

    def take(self, batch: TextBatch) -> Rollouts | None:
        """What was written for `batch`, which then is not held any more; None: nothing is held.

        Of a run that went on with another number of processes, this process's instances among all that are held.

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
        """For a checkpoint: what all processes hold, which they give together; None: nothing.

        It is kept because it cannot be written again: the weights that wrote it are gone after the update.
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
        """Take over what `state_dict` gave."""
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
