"""The GRACE step: write, score, reward, update, synchronise.

One step, as data (METHOD, section 2): a batch of instances; one engine call writes K rationales for each positive and
one for each anchor; one forward without gradients gives every sequence's embedding and log-probs; rewards are
similarities between embeddings over all processes; their advantages drive batch_size / mini_batch_size clipped
policy-gradient updates on the group's rationales; the engine takes over the new weights.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.seed import seed_everything
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor

from grace_exp.config.root import GraceConfig
from grace_exp.data.batch import TextBatch
from grace_exp.data.prompts import PromptBuilder
from grace_exp.objective.advantage import group_advantages
from grace_exp.policy.packing import TextSequence
from grace_exp.policy.policy import ForwardPass, Policy, Scored, collect
from grace_exp.policy.reference import Reference
from grace_exp.reward.composer import Reward, compose_reward
from grace_exp.reward.diagnostics import embedding_metrics
from grace_exp.rollout.protocol import RolloutEngine, derive_seed
from grace_exp.tracking.summary import PhaseTimer
from grace_exp.training.nonfinite import NonFiniteUpdate
from grace_exp.training.rollouts import Rollouts, mismatch_metrics, rollout_metrics, sample_rows, write_rollouts
from grace_exp.training.update import MiniBatch, accumulate_gradients, first_nonfinite

SampleSink = Callable[[int, list[dict[str, object]]], None]


class GraceModule(LightningModule):
    """Trains a policy to write rationales whose embeddings separate meanings."""

    def __init__(
        self,
        config: GraceConfig,
        *,
        policy: Policy,
        reference: Reference | None,
        engine: RolloutEngine,
        prompts: PromptBuilder,
        decode: Callable[..., str],
        log_samples: SampleSink,
    ) -> None:
        """Put the parts together.

        Args:
            config: The whole run.
            policy: The language model.
            reference: For the KL penalty; None where its coefficient is 0.
            engine: Writes rationales.
            prompts: Builds prompts.
            decode: Token ids to text, for the samples table.
            log_samples: Receives (step, rows) of the samples table.
        """
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # frozen weights are not in checkpoints; `load_state_dict` checks the rest
        self.config = config
        self.policy = policy
        self.reference = reference
        self.engine = engine
        self.prompts = prompts
        self.decode = decode
        self.log_samples = log_samples
        self.timer = PhaseTimer()
        self.completed_steps = 0
        self.skipped_updates = 0
        self.history: list[dict[str, float]] = []
        """Metrics of every step of this run, for the summary."""

    # ---- the step -------------------------------------------------------------------------------------------------

    def training_step(self, batch: TextBatch, batch_idx: int) -> None:
        """One GRACE step (not one optimizer update)."""
        step = batch.step
        # Dropout, if any, is the only draw from the global generators: fixed by step and rank, a resume needs no
        # stored state.
        seed_everything(derive_seed(self.config.seed, step, "process", self.global_rank) % 2**32, verbose=False)
        with self.timer("step"):
            with self.timer("rollout"):
                rollouts = write_rollouts(batch, self.engine, self.prompts, self.config.rollout, self.config.seed)
            group = len(rollouts.group)
            with self.timer("score"):
                scored, kept = self._score([rollout.sequence() for rollout in rollouts.all()], group)
                embeddings = scored.embeddings[self.config.backbone.pooling.region]
            with self.timer("reward"):
                inputs = rollouts.reward_inputs(embeddings, self._gather)
                reward = compose_reward(inputs, self.config.reward)
                advantages = group_advantages(reward.final, self.config.objective.advantage_scale)
                metrics = {
                    **reward.metrics(),
                    **embedding_metrics(inputs),
                    **rollout_metrics(inputs),
                    **mismatch_metrics(rollouts, scored.logprobs[:group], scored.mask[:group]),
                    "rollout/prompts_cut": self._sum(rollouts.prompts_cut().to(self.device)).item(),
                    "train/advantage_abs": advantages.abs().mean().item(),
                }
            mine = self._own(advantages)
            with self.timer("update"):
                metrics |= self._update(step, rollouts, mine, scored.logprobs[:group], kept)
            with self.timer("sync"):
                self.engine.sync(self.policy.model)
        self.completed_steps = step + 1
        self.trainer.datamodule.completed(step)  # type: ignore[attr-defined]
        self._log_samples(step, rollouts, reward, advantages)
        self._log_metrics(step, metrics, inputs.lengths)

    def _score(self, sequences: list[TextSequence], group: int) -> tuple[Scored, list[ForwardPass]]:
        """Embeddings and log-probs of all sequences, and the forwards kept for the update, if so configured.

        With one update a step the weights that score the first `group` sequences are those that are updated.
        """
        if not self.config.hardware.keep_forward:
            return self.policy.score(sequences), []
        trained, anchors = sequences[:group], sequences[group:]
        region = self.config.backbone.pooling.region
        self.policy.model.train()
        kept = list(self.policy.passes(trained, self.config.hardware.train_tokens, (region,)))
        first, second = collect(trained, kept), self.policy.score(anchors)
        embeddings = torch.cat([first.embeddings[region], second.embeddings[region]])
        return Scored({region: embeddings}, first.logprobs, first.mask), kept

    def _update(
        self,
        step: int,
        rollouts: Rollouts,
        advantages: Tensor,
        old_logprobs: Tensor,
        kept: list[ForwardPass],
    ) -> dict[str, float]:
        """All updates of one step; mini-batches are whole instances in their order."""
        instances, k = advantages.shape
        per_update = self.config.objective.mini_batch_size // self.trainer.world_size
        sequences = [rollout.sequence() for rollout in rollouts.group]
        sums: dict[str, list[float]] = {}
        self.policy.model.train()
        for start in range(0, instances, per_update):
            chosen = slice(start * k, (start + per_update) * k)
            mini_batch = MiniBatch(sequences[chosen], advantages.flatten()[chosen], old_logprobs[chosen], kept)
            for name, value in self._one_update(step, rollouts, start, mini_batch).items():
                sums.setdefault(name, []).append(value)
        metrics = {f"train/{name}": sum(values) / len(values) for name, values in sums.items()}
        metrics["train/skipped_updates"] = float(self.skipped_updates)
        return metrics

    def _one_update(self, step: int, rollouts: Rollouts, start: int, mini_batch: MiniBatch) -> dict[str, float]:
        optimizer = self._optimizer()
        world = self.trainer.world_size
        count = torch.tensor(float(sum(len(s.completion_ids) for s in mini_batch.sequences)), device=self.device)
        tokens = self._sum(count).item()

        def backward(loss: Tensor, last: bool) -> None:
            with optimizer.toggle_model(sync_grad=last):
                self.manual_backward(loss)

        optimizer.zero_grad()
        totals = accumulate_gradients(
            self.policy,
            self.reference,
            mini_batch,
            self.config.objective,
            token_budget=self.config.hardware.train_tokens,
            tokens=tokens / world,
            backward=backward,
        )
        parameters = self.policy.trainable_parameters()
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        learning_rate = float(optimizer.param_groups[0]["lr"])
        # Gradients are averaged over processes, so a bad one anywhere is seen everywhere; a bad loss is not.
        finite = bool(torch.isfinite(norm)) and bool(torch.isfinite(totals["loss"]))
        if self.trainer.strategy.reduce_boolean_decision(finite, all=True):
            if self.config.optim.max_grad_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(parameters, self.config.optim.max_grad_norm, norm)
            optimizer.step()
        else:
            culprit = first_nonfinite((name, p.grad) for name, p in self.policy.named_parameters())
            optimizer.zero_grad()
            self.skipped_updates += 1
            NonFiniteUpdate(step, start, rollouts, mini_batch, float(totals["loss"]), float(norm), culprit).handle(
                Path(self.config.run_dir), stop=self.config.optim.on_nonfinite == "stop", rank=self.global_rank
            )
        scheduler = self.lr_schedulers()
        assert not isinstance(scheduler, list) and scheduler is not None
        with warnings.catch_warnings():
            # A skipped update keeps its place in the schedule; torch takes it for a mistake if it is the first of all.
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            scheduler.step()
        means = {name: (self._sum(value) / tokens).item() for name, value in totals.items()}
        return means | {"grad_norm": norm.item(), "learning_rate": learning_rate}

    # ---- several processes ----------------------------------------------------------------------------------------

    def _gather(self, tensor: Tensor) -> Tensor:
        """Concatenate over processes along the first dimension, in rank order."""
        if self.trainer.world_size == 1:
            return tensor
        gathered = self.all_gather(tensor)
        assert isinstance(gathered, Tensor)
        return gathered.flatten(0, 1)

    def _own(self, tensor: Tensor) -> Tensor:
        """This process's rows of a gathered tensor."""
        return tensor.chunk(self.trainer.world_size)[self.global_rank]

    def _sum(self, value: Tensor) -> Tensor:
        reduced = self.trainer.strategy.reduce(value, reduce_op="sum")
        assert isinstance(reduced, Tensor)
        return reduced

    def _optimizer(self) -> LightningOptimizer:
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        return optimizer

    # ---- logging --------------------------------------------------------------------------------------------------

    def _log_metrics(self, step: int, metrics: dict[str, float], lengths: Tensor) -> None:
        times = self.timer.step_metrics()
        metrics |= times | {"perf/rationale_tokens_per_second": lengths.sum().item() / times["time/step"]}
        for logger in self.loggers:
            logger.log_metrics(metrics, step=step)
        self.history.append({"step": float(step)} | metrics)
        # For callbacks that watch a figure; the loggers have it already.
        for name, value in metrics.items():
            if not name.startswith(("time/", "perf/")):
                self.log(name, value, logger=False, rank_zero_only=True, batch_size=1)

    def _log_samples(self, step: int, rollouts: Rollouts, reward: Reward, advantages: Tensor) -> None:
        every = self.config.logger.samples_every_n_steps
        last = step == self.config.job.steps - 1
        if not every or (step % every and not last) or self.global_rank:
            return
        figures = dict(reward.terms) | {"total": reward.total, "final": reward.final, "advantage": advantages}
        own = {name: self._own(values) for name, values in figures.items()}
        self.log_samples(step, sample_rows(rollouts, own, self.decode, self.config.logger.samples_per_step))

    # ---- optimizer and state --------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """AdamW over the trainable parameters and a schedule counted in updates."""
        from transformers import get_scheduler

        optim = self.config.optim
        optimizer = torch.optim.AdamW(
            self.policy.trainable_parameters(),
            lr=optim.learning_rate,
            betas=(optim.beta1, optim.beta2),
            eps=optim.epsilon,
            weight_decay=optim.weight_decay,
            fused=self.config.hardware.accelerator == "gpu",  # one kernel, no temporary copy of the weights
        )
        updates = self.config.job.steps * self.config.job.batch_size // self.config.objective.mini_batch_size
        name = "constant_with_warmup" if optim.schedule == "constant" else optim.schedule
        scheduler = get_scheduler(name, optimizer, num_warmup_steps=optim.warmup_steps, num_training_steps=updates)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what training changes, and how far it has come."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}
        checkpoint["grace"] = {
            "completed_steps": self.completed_steps,
            "skipped_updates": self.skipped_updates,
            "seconds": self.timer.state_dict(),
            "history": self.history,
            "config": asdict(self.config),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue the counts of a checkpoint; `training.resume` has compared its settings with ours."""
        state = checkpoint["grace"]
        # Of a run that was finished, Lightning would count the epoch as done, and train nothing where steps were added.
        checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] = False
        self.completed_steps = state["completed_steps"]
        self.skipped_updates = state["skipped_updates"]
        self.timer.load_state_dict(state["seconds"])
        self.history = [dict(row) for row in state["history"]]

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load the trained weights; every one of them must be there, and nothing else.

        Raises:
            RuntimeError: Names that are missing or unknown.
        """
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        if trained != set(state_dict):
            raise RuntimeError(
                "checkpoint and model do not fit: missing "
                f"{sorted(trained - set(state_dict))[:3]}, unknown {sorted(set(state_dict) - trained)[:3]}"
            )
        return super().load_state_dict(state_dict, strict=False, assign=assign)


def grace_module(module: LightningModule) -> GraceModule:
    """The module that Lightning hands to a callback, by its own type."""
    assert isinstance(module, GraceModule)
    return module
