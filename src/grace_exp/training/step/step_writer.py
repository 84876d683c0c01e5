"""Let the engine write a step's rationales: when the step begins, or during the step before."""

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
    """Gets the rationales of a run's steps from the engine, within the present token budget."""

    def __init__(self, module: StepModule, *, embeds_by_policy: bool) -> None:
        """Start without rationales.

        Args:
            module: The run's module, with its settings, engine, prompts and processes.
            embeds_by_policy: Whether the policy itself computes the embeddings that are rewarded.
        """
        self._module = module
        self._config = module.config
        self._embeds_by_policy = embeds_by_policy
        self._tail = Tail(module.config.rollout)
        self._ahead = WrittenAhead(module.engine) if module.config.rollout.overlap == "one_step" else None

    @property
    def writes_ahead(self) -> bool:
        """Whether the engine writes the next step's rationales during a step."""
        return self._ahead is not None

    @property
    def holds_rationales(self) -> bool:
        """Whether it holds rationales of a later step, as after a resume."""
        return self._ahead is not None and self._ahead.step is not None

    def fresh(self, batch: TextBatch) -> tuple[Rollouts, dict[str, float]]:
        """Return the step's new rationales; if writing ahead, also start the next step's with the present weights.

        Returns:
            The rationales, and the metrics `rollout/*` of their lengths and their age.
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
        """Return rationales for a batch, with the present weights."""
        module, config = self._module, self._config
        with module.timer("rollout"):
            return write_rollouts(
                batch, module.engine, module.prompts, config.rollout, config.seed, **self._written_as_well()
            )

    def settle(self) -> None:
        """Wait for rationales written ahead, on all processes, because they may share the engine that is updated."""
        if self._ahead is not None:
            with self._module.timer("wait"):
                self._ahead.settle()
                self._module.trainer.strategy.barrier("rationales written ahead")

    def state_dict(self) -> dict[str, Any]:
        """Return the token budget, and rationales written ahead, for a checkpoint. All processes must call it."""
        state: dict[str, Any] = {"token_budget": self._tail.budget}
        if self._ahead is not None:
            state["written_ahead"] = self._ahead.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned. Without a token budget in it, the present one stays."""
        self._tail.budget = state.get("token_budget", self._tail.budget)
        if self._ahead is not None:
            self._ahead.load_state_dict(state.get("written_ahead"))

    def _written_as_well(self) -> dict[str, Any]:
        """Return the arguments of a step's requests besides its texts."""
        return {
            "greedy": needs_greedy_baseline(self._config.objective),
            "max_tokens": self._tail.budget,
            "pooling": self._module.policy.one_pass.pooling if self._in_one_pass() else None,
        }

    def _in_one_pass(self) -> bool:
        """Whether rationales that are not trained get their embeddings while they are written.

        The policy then writes with the weights that it embeds with, and no gradient flows through these embeddings.
        """
        kept = self._config.hardware.keeps_forward and embedding_gradients(self._config.objective) == "all"
        own = self._embeds_by_policy and self._ahead is None
        return own and not kept and self._module.policy.one_pass.wanted(self._module.engine)
