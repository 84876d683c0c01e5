"""Who writes a step's rationales: the engine, when the step begins or beside the step before."""

from collections.abc import Mapping
from typing import Any

from grace_exp.data.batch import TextBatch
from grace_exp.objective.registry import needs_greedy_baseline
from grace_exp.training.module import StepModule
from grace_exp.training.step.rollouts import Rollouts, step_requests, write_rollouts
from grace_exp.training.step.step_pathwise import embedding_gradients
from grace_exp.training.step.tail import Tail
from grace_exp.training.step.written_ahead import WrittenAhead


class StepWriter:
    """Has the rationales of a run's steps written, within the token budget of the moment."""

    def __init__(self, module: StepModule, *, embeds_by_policy: bool) -> None:
        """Write nothing yet.

        Args:
            module: The run: its settings, engine, prompts and processes.
            embeds_by_policy: Whether the embeddings that are rewarded are the policy's own.
        """
        self._module = module
        self._config = module.config
        self._embeds_by_policy = embeds_by_policy
        self._tail = Tail(module.config.rollout)
        self._ahead = WrittenAhead(module.engine) if module.config.rollout.overlap == "one_step" else None

    @property
    def writes_ahead(self) -> bool:
        """Whether the engine writes the next step's rationales while a step trains."""
        return self._ahead is not None

    @property
    def holds_rationales(self) -> bool:
        """Whether rationales of a coming step are there, as in a run that was resumed."""
        return self._ahead is not None and self._ahead.step is not None

    def fresh(self, batch: TextBatch) -> tuple[Rollouts, dict[str, float]]:
        """The step's own rationales; where so configured the next step's are begun, with the weights of now.

        Returns:
            The rationales, and `rollout/*` of their lengths and their age.
        """
        ahead, module = self._ahead, self._module
        rollouts = ahead.take(batch) if ahead is not None else None
        if ahead is not None and rollouts is not None:
            module.timer.add("rollout", ahead.seconds)
        staleness = float(rollouts is not None)
        rollouts = rollouts or self.write(batch)
        metrics = self._tail.observe(rollouts, module.sum, module.device)
        if ahead is not None:
            metrics["rollout/staleness"] = staleness
            if batch.step + 1 < self._config.job.steps:
                following = module.trainer.datamodule.batch(batch.step + 1)  # type: ignore[attr-defined]
                ahead.start(
                    step_requests(
                        following, module.prompts, self._config.rollout, self._config.seed, **self._written_as_well()
                    )
                )
        return rollouts, metrics

    def write(self, batch: TextBatch) -> Rollouts:
        """Rationales for a batch, with the weights of now."""
        module, config = self._module, self._config
        with module.timer("rollout"):
            return write_rollouts(
                batch, module.engine, module.prompts, config.rollout, config.seed, **self._written_as_well()
            )

    def settle(self) -> None:
        """Wait for what is written ahead, on all processes: they may share the engine that gets new weights."""
        if self._ahead is not None:
            with self._module.timer("wait"):
                self._ahead.settle()
                self._module.trainer.strategy.barrier("rationales written ahead")

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: the token budget, and what is written ahead. All processes call it."""
        state: dict[str, Any] = {"token_budget": self._tail.budget}
        if self._ahead is not None:
            state["written_ahead"] = self._ahead.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave. Without a token budget in it, the present one stays."""
        self._tail.budget = state.get("token_budget", self._tail.budget)
        if self._ahead is not None:
            self._ahead.load_state_dict(state.get("written_ahead"))

    def _written_as_well(self) -> dict[str, Any]:
        """What the requests of a step have beside its texts."""
        return {
            "greedy": needs_greedy_baseline(self._config.objective),
            "max_tokens": self._tail.budget,
            "pooling": self._module.policy.one_pass.pooling if self._in_one_pass() else None,
        }

    def _in_one_pass(self) -> bool:
        """Whether rationales that are not trained get their embeddings as they are written.

        The policy then writes with the weights that it embeds with, and no gradient goes through these embeddings.
        """
        kept = self._config.hardware.keeps_forward and embedding_gradients(self._config.objective) == "all"
        own = self._embeds_by_policy and self._ahead is None
        return own and not kept and self._module.policy.one_pass.wanted(self._module.engine)
