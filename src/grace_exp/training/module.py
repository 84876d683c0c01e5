"""What the training modules of all methods share: steps, updates, processes, logging, optimizer, state."""

import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities.seed import seed_everything
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from grace_exp.config.root import GraceConfig
from grace_exp.data.batch import Instance, TextBatch
from grace_exp.data.prompts import PromptBuilder
from grace_exp.policy.policy import Policy
from grace_exp.policy.sharding import part_of, whole
from grace_exp.rollout.protocol import RolloutEngine, derive_seed
from grace_exp.tracking.summary import PhaseTimer
from grace_exp.training.plan.usage import Usage
from grace_exp.training.step.nonfinite import report_nonfinite
from grace_exp.training.step.update import first_nonfinite

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Backward = Callable[[Tensor, bool], None]
"""Backward of a loss; the second argument says whether it is the last of the update, which exchanges gradients."""


class StepModule(LightningModule):
    """A training module whose `training_step` is one step of the run: one batch, and one or several updates."""

    def __init__(self, config: GraceConfig, *, policy: Policy, engine: RolloutEngine, prompts: PromptBuilder) -> None:
        """Store the parts of the run.

        Args:
            config: The settings of the run.
            policy: The language model.
            engine: Engine that writes rationales.
            prompts: Builder of prompts.
        """
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # frozen weights are not in checkpoints; `load_state_dict` checks the rest
        self.config = config
        self.policy = policy
        self.engine = engine
        self.prompts = prompts
        self.timer = PhaseTimer()
        self.completed_steps = 0
        self.skipped_updates = 0
        self.usage: Usage | None = None
        """Measures what a step uses; None: the run has no plan."""
        self.history: list[dict[str, float]] = []
        """Metrics of every step of this run, for the summary."""

    # ---- the step -------------------------------------------------------------------------------------------------

    @abstractmethod
    def step(self, batch: TextBatch) -> dict[str, float]:
        """Run the step and return its metrics, which are the same on all processes."""

    def settle(self) -> None:
        """Wait until the engine is idle, before it gets new weights."""

    def training_step(self, batch: TextBatch, batch_idx: int) -> None:
        """Run one step."""
        # Only dropout draws from the global generators; with seeds by step and rank, a resume needs no stored state.
        seed_everything(derive_seed(self.config.seed, batch.step, "process", self.global_rank) % 2**32, verbose=False)
        with self.timer("step"):
            metrics = self.step(batch)
            self.settle()
            with self.timer("sync"):
                self.engine.sync(self.policy.model)
        self.completed_steps = batch.step + 1
        self.trainer.datamodule.completed(batch.step)  # type: ignore[attr-defined]
        self._log_metrics(batch.step, metrics)

    def mini_batches(self, instances: Sequence[Instance]) -> list[tuple[int, Sequence[Instance]]]:
        """Return this process's share of each update of the step, with the position of its first instance."""
        share = self.config.objective.mini_batch_size // self.trainer.world_size
        return [(start, instances[start : start + share]) for start in range(0, len(instances), share)]

    def update(
        self,
        step: int,
        first: int,
        evidence: Callable[[], dict[str, Any]],
        accumulate: Callable[[Backward], Tensor],
    ) -> dict[str, float]:
        """Make one optimizer update.

        Args:
            step: Number of the step.
            first: Position of the first instance in this process's batch, to identify a bad update.
            evidence: Returns the inputs of the update as plain data, which are saved if it is bad.
            accumulate: Runs forwards and backwards; returns the update's loss, without gradient.

        Returns:
            `grad_norm`, `learning_rate`, `skipped_updates`.

        Raises:
            NonFiniteError: Loss or gradient is nan or inf, and `optim.on_nonfinite` is stop.
        """
        optimizer = self._optimizer()

        def backward(loss: Tensor, last: bool) -> None:
            with optimizer.toggle_model(sync_grad=last):
                self.manual_backward(loss)

        self._zero_gradients()
        loss = accumulate(backward)
        parameters = self.policy.trainable_parameters()
        norm = whole(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
        learning_rate = float(optimizer.param_groups[0]["lr"])
        # Gradients are averaged over processes, so all processes see a bad gradient of one; a bad loss is not shared.
        finite = bool(torch.isfinite(norm)) and bool(torch.isfinite(loss))
        if self.trainer.strategy.reduce_boolean_decision(finite, all=True):
            if self.config.optim.max_grad_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(parameters, self.config.optim.max_grad_norm, norm)
            optimizer.step()
        else:
            named = self.policy.named_parameters()
            culprit = first_nonfinite((name, whole(p.grad)) for name, p in named if p.grad is not None)
            self._zero_gradients()
            self.skipped_updates += 1
            report_nonfinite(
                Path(self.config.run_dir),
                step=step,
                first_instance=first,
                rank=self.global_rank,
                loss=loss.item(),
                grad_norm=norm.item(),
                parameter=culprit,
                evidence=evidence(),
                stop=self.config.optim.on_nonfinite == "stop",
            )
        self.advance_schedule()
        return {
            "grad_norm": norm.item(),
            "learning_rate": learning_rate,
            "skipped_updates": float(self.skipped_updates),
        }

    def advance_schedule(self) -> None:
        """Advance to the next update's learning rate, whether this update was made or skipped."""
        scheduler = self.lr_schedulers()
        assert not isinstance(scheduler, list) and scheduler is not None
        with warnings.catch_warnings():
            # A skipped update keeps its place in the schedule; if it is the first one, torch warns of a mistake.
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            scheduler.step()

    # ---- several processes ----------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Shard the weights under `hardware.strategy=fsdp2`; Lightning calls this."""
        if self.config.hardware.strategy == "fsdp2" and not self.policy.sharded:
            self.shard(self.device_mesh["data_parallel"])  # type: ignore[index]

    def shard(self, mesh: "DeviceMesh") -> None:
        """Shard the weights among the processes of `mesh`."""
        self.policy.shard(mesh)

    def on_train_start(self) -> None:
        """Under DDP, let the exchange buckets be the gradients' only storage from the first update on.

        They become it in a backward pass that exchanges gradients, and are laid out again in the second such pass.
        Gradients that are accumulated before would be stored beside them.
        """
        if self._has_buckets:
            for _ in range(2):
                nothing = [weight.flatten()[:0].sum() for weight in self.policy.trainable_parameters()]
                self.manual_backward(torch.stack(nothing).sum())

    @property
    def _has_buckets(self) -> bool:
        return isinstance(self.trainer.strategy, DDPStrategy)

    def _zero_gradients(self) -> None:
        self._optimizer().zero_grad(set_to_none=not self._has_buckets)  # None would detach gradients from the buckets

    @property
    def world_size(self) -> int:
        """The number of processes of the run."""
        return self.trainer.world_size

    def gather(self, tensor: Tensor) -> Tensor:
        """Concatenate a tensor over processes along the first dimension, in rank order, without gradient."""
        if self.trainer.world_size == 1:
            return tensor
        gathered = self.all_gather(tensor)
        assert isinstance(gathered, Tensor)
        return gathered.flatten(0, 1)

    def own(self, tensor: Tensor) -> Tensor:
        """Return this process's rows of a gathered tensor."""
        return tensor.chunk(self.trainer.world_size)[self.global_rank]

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum over processes."""
        reduced = self.trainer.strategy.reduce(value, reduce_op="sum")
        assert isinstance(reduced, Tensor)
        return reduced

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean over processes."""
        reduced = self.trainer.strategy.reduce(value, reduce_op="mean")
        assert isinstance(reduced, Tensor)
        return reduced

    def _optimizer(self) -> LightningOptimizer:
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        return optimizer

    # ---- logging --------------------------------------------------------------------------------------------------

    def _log_metrics(self, step: int, metrics: dict[str, float]) -> None:
        metrics |= self.timer.step_metrics()
        if self.usage is not None:
            metrics |= self.usage.step_metrics(self.policy, metrics)
        if "rollout/tokens" in metrics:
            metrics["perf/rationale_tokens_per_second"] = metrics["rollout/tokens"] / metrics["time/step"]
        for logger in self.loggers:
            logger.log_metrics(metrics, step=step)
        self.history.append({"step": float(step)} | metrics)
        # For callbacks that watch a metric; the loggers have it already.
        for name, value in metrics.items():
            if not name.startswith(("time/", "perf/")):
                self.log(name, value, logger=False, rank_zero_only=True, batch_size=1)

    # ---- optimizer and state --------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """Return AdamW over the trainable parameters, and a schedule counted in updates."""
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
        """Store what training changes, and how many steps are done."""
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
        """Restore the counts of a checkpoint; `training.resume` has compared its settings with the present ones."""
        state = checkpoint["grace"]
        # If the checkpoint's run was finished, Lightning would count the epoch as done and not train the added steps.
        checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] = False
        self.completed_steps = state["completed_steps"]
        self.skipped_updates = state["skipped_updates"]
        self.timer.load_state_dict(state["seconds"])
        self.history = [dict(row) for row in state["history"]]

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load the trained weights. All of them must be there, and no others.

        Raises:
            RuntimeError: Names are missing or unknown.
        """
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        if trained != set(state_dict):
            raise RuntimeError(
                "checkpoint and model do not fit: missing "
                f"{sorted(trained - set(state_dict))[:3]}, unknown {sorted(set(state_dict) - trained)[:3]}"
            )
        own_parameters = dict(self.named_parameters())
        parts = {name: part_of(value, own_parameters[name]) for name, value in state_dict.items()}
        return super().load_state_dict(parts, strict=False, assign=assign)


def step_module(module: LightningModule) -> StepModule:
    """Return the module that Lightning hands to a callback, as a `StepModule`."""
    assert isinstance(module, StepModule)
    return module
