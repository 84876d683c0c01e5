"""Save the inputs of an update whose loss or gradient is nan or inf."""

from pathlib import Path
from typing import Any

from grace_exp.errors import GraceError
from grace_exp.tracking.summary import write_json_atomic
from grace_exp.training.step.update import MiniBatch


class NonFiniteError(GraceError):
    """Loss or gradient is nan or inf, and `optim.on_nonfinite` is stop."""


def rollout_evidence(mini_batch: MiniBatch) -> dict[str, Any]:
    """Return the rationales of a mini-batch as plain data, with numbers as text because JSON has no nan."""
    advantages = mini_batch.advantages_GK.flatten().tolist()
    rows = zip(mini_batch.rollouts, advantages, mini_batch.old_logprobs_NT.tolist(), strict=True)
    return {
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
        ]
    }


def report_nonfinite(
    run_dir: Path,
    *,
    step: int,
    first_instance: int,
    rank: int,
    loss: float,
    grad_norm: float,
    parameter: str | None,
    evidence: dict[str, Any],
    stop: bool,
) -> None:
    """Save the inputs of a bad update, and raise if `stop` is set.

    Args:
        run_dir: The run folder; the file goes to its `nonfinite/`.
        step: Number of the step.
        first_instance: Position of the mini-batch's first instance in this process's batch.
        rank: Rank of this process.
        loss: Loss of the update.
        grad_norm: Norm of all gradients.
        parameter: First parameter with a bad gradient, if any.
        evidence: The inputs of the update.
        stop: Whether to raise.

    Raises:
        NonFiniteError: `stop` is set.
    """
    path = run_dir / "nonfinite" / f"step-{step:06d}-instance-{first_instance}-rank-{rank}.json"
    # Numbers are stored as text, because JSON has no nan.
    figures = {"step": step, "loss": str(loss), "grad_norm": str(grad_norm), "parameter": parameter}
    write_json_atomic(path, figures | evidence)
    if stop:
        where = f", first in {parameter}" if parameter else ""
        raise NonFiniteError(
            f"step {step}: loss {loss}, gradient norm {grad_norm}{where}. The update was not "
            f"made. The batch is in {path}. Lower optim.learning_rate, check the data, or set "
            "optim.on_nonfinite=skip to leave such updates out."
        )
