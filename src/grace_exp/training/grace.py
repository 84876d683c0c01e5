"""The GRACE step: write, score, reward, update.

One step, as data (METHOD, section 2): a batch of instances; one engine call writes K rationales for each trained text
and one for each anchor; one forward without gradients gives every sequence's embedding and log-probs; rewards are
similarities between embeddings over all processes; their advantages drive batch_size / mini_batch_size policy-gradient
updates on the trained rationales.

    TextBatch -> Rollouts (what was written) -> StepScores (what the forwards say) -> a TrainedRole for each
    trained text (reward inputs, rewards, advantages) -> MiniBatch
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from grace_exp.config.root import GraceConfig
from grace_exp.data.batch import TextBatch
from grace_exp.data.prompts import PromptBuilder
from grace_exp.objective.aggregate import denominator
from grace_exp.objective.registry import needs_reference_kl
from grace_exp.policy.average import MovingAverage
from grace_exp.policy.freezing import freeze_beyond_pooling
from grace_exp.policy.policy import Policy
from grace_exp.policy.reference import Reference
from grace_exp.reward import EmbeddingError
from grace_exp.rollout.protocol import RolloutEngine
from grace_exp.tracking.summary import write_json_atomic
from grace_exp.training.module import Backward, StepModule
from grace_exp.training.step.dynamic_sampling import Resampler
from grace_exp.training.step.gradient_parts import policy_gradient
from grace_exp.training.step.mismatch import step_mismatch
from grace_exp.training.step.nonfinite import report_nonfinite, rollout_evidence
from grace_exp.training.step.rewards import StepRewards
from grace_exp.training.step.rollouts import Rollouts, sample_rows
from grace_exp.training.step.step_inputs import StepInputs
from grace_exp.training.step.step_pathwise import StepPathwise, embedding_gradients
from grace_exp.training.step.step_scores import StepScores
from grace_exp.training.step.step_writer import StepWriter
from grace_exp.training.step.stored_instances import StoredInstances
from grace_exp.training.step.trained_role import TrainedRole, role_metrics, trained_batch
from grace_exp.training.step.update import MiniBatch, accumulate_gradients
from grace_exp.training.step.variety import variety_metrics

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

SampleSink = Callable[[int, list[dict[str, object]]], None]


class GraceModule(StepModule):
    """Trains a policy to write rationales whose embeddings separate meanings."""

    def __init__(
        self,
        config: GraceConfig,
        *,
        policy: Policy,
        reference: Reference | None,
        encoder: Reference | MovingAverage | None,
        engine: RolloutEngine,
        prompts: PromptBuilder,
        decode: Callable[..., str],
        log_samples: SampleSink,
    ) -> None:
        """Put the parts together.

        Args:
            config: The whole run.
            policy: The language model.
            reference: For the KL penalty; None where there is none.
            encoder: Gives the embeddings that are rewarded; None: the policy does. May be `reference`.
            engine: Writes rationales.
            prompts: Builds prompts.
            decode: Token ids, and keywords of the tokenizer's `decode`, to text.
            log_samples: Receives (step, rows) of the samples table.
        """
        super().__init__(config, policy=policy, engine=engine, prompts=prompts)
        self.reference = reference
        self.encoder = encoder
        self.decode = decode
        self.log_samples = log_samples
        if config.objective.policy_gradient_weight == 0:
            freeze_beyond_pooling(policy)
        self.stored = StoredInstances(config) if config.objective.replay is not None else None
        self.writer = StepWriter(self, embeds_by_policy=encoder is None)

    # ---- the step -------------------------------------------------------------------------------------------------

    def step(self, batch: TextBatch) -> dict[str, float]:
        """One GRACE step (not one optimizer update)."""
        decode = partial(self.decode, skip_special_tokens=True)
        inputs = StepInputs(self.config, self, decode, batch.step)
        try:
            rollouts, scores, trained_roles, metrics = self._sample(batch, inputs)
        except EmbeddingError as error:  # on all processes, which have the same embeddings
            if self.config.optim.on_nonfinite == "stop":
                raise
            return self._skip(batch, error)
        with self.timer("reward"):
            metrics |= role_metrics(trained_roles) | step_mismatch(
                rollouts, scores, self.config.objective.importance, self
            )
            metrics["rollout/tokens"] = float(sum(trained.inputs.lengths_GK.sum().item() for trained in trained_roles))
            metrics["rollout/prompts_cut"] = self._total(rollouts.prompts_cut())
            metrics |= variety_metrics(rollouts, scores, self)
        if self.stored is not None:
            self.stored.add(rollouts, scores)
        pathwise = None
        if self.config.objective.pathwise.weight > 0:
            pathwise = StepPathwise(self.config, self.policy, self, inputs, scores, rollouts, trained_roles).part
        with self.timer("update"):
            metrics |= self._update(batch.step, trained_batch(rollouts, scores, trained_roles, self.own, pathwise))
        self._log_samples(batch.step, rollouts, trained_roles)
        return metrics

    def _sample(
        self, batch: TextBatch, inputs: StepInputs
    ) -> tuple[Rollouts, StepScores, list[TrainedRole], dict[str, float]]:
        """Write and reward; with dynamic sampling, again in the place of instances that teach nothing."""
        config, objective = self.config, self.config.objective
        scores = StepScores(
            self.policy,
            config.hardware,
            inputs.regions,
            encoder=self.encoder,
            reference=self.reference if needs_reference_kl(objective) else None,
            entropy=objective.entropy_coefficient > 0,
            embedding_gradients=embedding_gradients(objective),
        )
        rewards = StepRewards(config, scores, self, inputs)
        rollouts, metrics = self.writer.fresh(batch)
        if objective.dynamic_sampling is None and not self.writer.writes_ahead:
            self.engine.sleep()  # scoring and updates have its memory
        if self.stored is not None:
            rollouts = self.stored.joined(rollouts, self, batch.step)
            metrics["rollout/stored"] = self._total(
                sum(instance_rollouts.stored for instance_rollouts in rollouts.instances)
            )
        trained_roles = self._judge(rewards, rollouts, rollouts)
        if objective.dynamic_sampling is None:
            return rollouts, scores, trained_roles, metrics | self._note_missed(rewards)
        resampler = Resampler(config.seed, batch.step, self.gather, self.trainer.datamodule.another)  # type: ignore[attr-defined]
        for _ in range(objective.dynamic_sampling.max_rounds):
            others = resampler.next(rollouts, trained_roles)
            if not others:
                break
            partners = [
                others[index]
                for instance_rollouts in rollouts.instances
                if (index := instance_rollouts.instance.index) in others
            ]
            new = self.writer.write(TextBatch(batch.step, partners))
            rollouts = resampler.made(rollouts, new)
            trained_roles = self._judge(rewards, rollouts, new)
        self.engine.sleep()
        metrics |= self._note_missed(rewards) | resampler.metrics(rollouts, trained_roles)
        return rollouts, scores, trained_roles, metrics

    def _note_missed(self, rewards: StepRewards) -> dict[str, float]:
        """Tell the data how often rationales missed their instances; return the figures of a curriculum."""
        if not rewards.missed:
            return {}
        missed = self.trainer.strategy.broadcast(rewards.missed)  # one process's word, in case of rounding
        figures: dict[str, float] = self.trainer.datamodule.missed(missed)  # type: ignore[attr-defined]
        return figures

    def settle(self) -> None:
        """Wait for what is written ahead."""
        self.writer.settle()

    def _judge(self, rewards: StepRewards, rollouts: Rollouts, new: Rollouts) -> list[TrainedRole]:
        with self.timer("score"):
            rewards.add(rollouts, new)
        with self.timer("reward"):
            return rewards.trained_roles(rollouts)

    def _skip(self, batch: TextBatch, error: EmbeddingError) -> dict[str, float]:
        """Skip the updates of a step that has no reward, and store its instances."""
        updates = self.config.job.batch_size // self.config.objective.mini_batch_size
        self.skipped_updates += updates
        for _ in range(updates):
            self.advance_schedule()
        write_json_atomic(
            Path(self.config.run_dir) / "nonfinite" / f"step-{batch.step:06d}-rank-{self.global_rank}.json",
            {"step": batch.step, "error": str(error), "instances": [asdict(instance) for instance in batch.instances]},
        )
        names = ("reward/total/mean", "reward/final/mean", "rollout/tokens_mean", "train/loss", "train/learning_rate")
        return dict.fromkeys(names, math.nan) | {"train/skipped_updates": float(self.skipped_updates)}

    def _total(self, count: int) -> float:
        """Sum of a count over processes."""
        return self.sum(torch.tensor(count, dtype=torch.float64, device=self.device)).item()

    def _update(self, step: int, trained: MiniBatch) -> dict[str, float]:
        """All updates of one step.

        Args:
            step: Of the run.
            trained: This process's groups, in the order of the mini-batches; as many for each update.

        Returns:
            `train/*`: means over the updates that were made (over all where none was).
        """
        updates = self.config.job.batch_size // self.config.objective.mini_batch_size
        per_update = len(trained.advantages_GK) // updates
        update_metrics: list[dict[str, float]] = []
        skipped: list[dict[str, float]] = []
        self.policy.model.train()
        for start in range(0, updates * per_update, per_update):
            before = self.skipped_updates
            figures = self._one_update(step, start, trained.part(start, per_update))
            (update_metrics if self.skipped_updates == before else skipped).append(figures)
        found = update_metrics or skipped
        metrics = {f"train/{name}": sum(figures[name] for figures in found) / len(found) for name in found[0]}
        metrics["train/skipped_updates"] = float(self.skipped_updates)
        return metrics

    def _one_update(self, step: int, start: int, mini_batch: MiniBatch) -> dict[str, float]:
        objective, world = self.config.objective, self.trainer.world_size
        tokens, rationales = self.sum(mini_batch.counts()).tolist()
        divisor = denominator(tokens, rationales, objective, self.config.rollout.max_tokens)
        totals: dict[str, Tensor] = {}
        figures: dict[str, float] = {}
        pathwise, apart = None, policy_gradient(objective, step, self.policy.trainable_parameters())
        if mini_batch.pathwise is not None:
            try:
                pathwise = mini_batch.pathwise(start, len(mini_batch.advantages_GK))
            except EmbeddingError as error:  # on all processes, which have the same embeddings
                return self._without_direction(step, start, mini_batch, error)

        def accumulate(backward: Backward) -> Tensor:
            totals.update(
                accumulate_gradients(
                    self.policy,
                    self.reference,
                    mini_batch,
                    objective,
                    token_budget=self.config.hardware.train_budget,
                    divisor=divisor / world,  # gradients are averaged over processes
                    backward=backward,
                    pathwise=pathwise,
                    policy_gradient=apart,
                )
            )
            if apart is not None:
                figures.update(apart.metrics(self.mean))
            return totals["loss"]

        done = self.update(step, start, partial(rollout_evidence, mini_batch), accumulate)
        sums = {name: self.sum(value).item() for name, value in totals.items()}
        means = {name: value / (divisor if name == "loss" else max(tokens, 1.0)) for name, value in sums.items()}
        if pathwise is not None:
            figures["pathwise"] = -pathwise.value.item()
            means["loss"] *= objective.policy_gradient_weight
            means["loss"] += objective.pathwise.weight * figures["pathwise"]
        return means | figures | done

    def _without_direction(
        self, step: int, start: int, mini_batch: MiniBatch, error: EmbeddingError
    ) -> dict[str, float]:
        """Skip an update whose embeddings have no direction under the present weights, or stop."""
        self.skipped_updates += 1
        report_nonfinite(
            Path(self.config.run_dir),
            step=step,
            first_instance=start,
            rank=self.global_rank,
            loss=math.nan,
            grad_norm=math.nan,
            parameter=None,
            evidence={"error": str(error)} | rollout_evidence(mini_batch),
            stop=self.config.optim.on_nonfinite == "stop",
        )
        self.advance_schedule()
        return dict.fromkeys(("loss", "grad_norm", "learning_rate"), math.nan)

    # ---- logging, optimizer, state --------------------------------------------------------------------------------

    def _log_samples(self, step: int, rollouts: Rollouts, trained_roles: Sequence[TrainedRole]) -> None:
        every = self.config.logger.samples_every_n_steps
        last = step == self.config.job.steps - 1
        if not every or (step % every and not last) or self.global_rank:
            return
        figures = {
            trained_role.role: {name: self.own(values) for name, values in trained_role.figures().items()}
            for trained_role in trained_roles
        }
        self.log_samples(step, sample_rows(rollouts, figures, self.decode, self.config.logger.samples_per_step))

    def shard(self, mesh: "DeviceMesh") -> None:
        """As in every method; reference and encoder are sharded too."""
        super().shard(mesh)
        for other in {self.reference, self.encoder}:
            if isinstance(other, Reference):
                other.shard(mesh)
            elif isinstance(other, MovingAverage):
                other.share()

    def configure_optimizers(self) -> Any:
        """As in every method; a moving average follows each update that is made."""
        configured = super().configure_optimizers()
        if isinstance(encoder := self.encoder, MovingAverage):
            configured["optimizer"].register_step_post_hook(lambda *_: encoder.update())
        return configured

    def on_train_start(self) -> None:
        """As in every method; an engine that holds rationales of a resumed run gets the weights first."""
        super().on_train_start()
        if self.writer.holds_rationales:
            self.engine.sync(self.policy.model)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also save the moving average, the stored instances, the token budget, and rationales written ahead."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["grace"] |= self.writer.state_dict()
        if isinstance(self.encoder, MovingAverage):
            checkpoint["grace"]["encoder"] = self.encoder.state_dict()
        if self.stored is not None:
            checkpoint["grace"]["stored"] = self.stored.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also load the moving average, the stored instances, the token budget, and rationales written ahead."""
        super().on_load_checkpoint(checkpoint)
        self.writer.load_state_dict(checkpoint["grace"])
        if isinstance(self.encoder, MovingAverage):
            self.encoder.load_state_dict(checkpoint["grace"]["encoder"])
        if self.stored is not None:
            self.stored.load_state_dict(checkpoint["grace"]["stored"])
