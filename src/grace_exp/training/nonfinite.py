"""What is kept of an update whose loss or gradient is nan or inf."""

from dataclasses import dataclass
from pathlib import Path

from grace_exp.errors import GraceError
from grace_exp.tracking.summary import write_json_atomic
from grace_exp.training.rollouts import Rollouts
from grace_exp.training.update import MiniBatch


class NonFiniteError(GraceError):
    """Training met nan or inf and was told to stop."""


@dataclass(frozen=True)
class NonFiniteUpdate:
    """The evidence.

    Attributes:
        step: GRACE step.
        first_instance: First instance of the mini-batch within this process's batch.
        rollouts: All rollouts of the step.
        mini_batch: Those of the update.
        loss: Summed loss.
        grad_norm: Norm of all gradients.
        parameter: First parameter with a bad gradient, if any.
    """

    step: int
    first_instance: int
    rollouts: Rollouts
    mini_batch: MiniBatch
    loss: float
    grad_norm: float
    parameter: str | None

    def handle(self, run_dir: Path, *, stop: bool, rank: int) -> None:
        """Save the batch; raise if told to stop.

        Raises:
            NonFiniteError: With `stop`.
        """
        path = run_dir / "nonfinite" / f"step-{self.step:06d}-instance-{self.first_instance}-rank-{rank}.json"
        k = self.rollouts.group_size
        chosen = self.rollouts.group[self.first_instance * k :][: len(self.mini_batch.sequences)]
        rows = zip(chosen, self.mini_batch.advantages.tolist(), self.mini_batch.old_logprobs.tolist(), strict=True)
        write_json_atomic(
            path,
            {
                "step": self.step,
                # As text: JSON has no nan.
                "loss": str(self.loss),
                "grad_norm": str(self.grad_norm),
                "parameter": self.parameter,
                "rollouts": [
                    {
                        "instance": rollout.instance.index,
                        "source": rollout.instance.source,
                        "text": rollout.text,
                        "prompt_ids": list(rollout.prompt.token_ids),
                        "completion_ids": list(rollout.completion.token_ids),
                        "advantage": str(advantage),
                        "old_logprobs": [str(value) for value in old[: len(rollout.completion.token_ids)]],
                    }
                    for rollout, advantage, old in rows
                ],
            },
        )
        if stop:
            where = f", first in {self.parameter}" if self.parameter else ""
            raise NonFiniteError(
                f"step {self.step}: loss {self.loss}, gradient norm {self.grad_norm}{where}. The update was not "
                f"made. The batch is in {path}. Lower optim.learning_rate, check the data, or set "
                "optim.on_nonfinite=skip to leave such updates out."
            )
