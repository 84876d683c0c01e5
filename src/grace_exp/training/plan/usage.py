"""What a step really used, compared with the plan."""

from collections.abc import Mapping

import torch

from grace_exp.policy.policy import Policy
from grace_exp.rollout.vllm.memory import GIB
from grace_exp.tracking.summary import peak_memory_gib
from grace_exp.training.plan.run_plan import RunPlan
from grace_exp.training.plan.step_work import backward_share, forward_flops


class Usage:
    """Measures memory and arithmetic of this process, step by step."""

    def __init__(self, plan: RunPlan) -> None:
        """Start counting.

        Args:
            plan: The plan of the run.
        """
        self.plan = plan

    def step_metrics(self, policy: Policy, times: Mapping[str, float]) -> dict[str, float]:
        """Return the metrics since the last call.

        Args:
            policy: Counts what it computes.
            times: `time/score` and `time/update` of the same step, seconds.

        Returns:
            `perf/memory_planned_gib`; `perf/memory_peak_gib` (GPU: the peak of tensors since the start; CPU: of the
            process); `perf/memory_reserved_gib` (GPU: what the allocator has reserved); and `perf/mfu` if the device's
            peak speed is known.
        """
        dimensions = self.plan.settings.dimensions
        flops = 0.0
        for counter, passes in ((policy.scored, 1), (policy.trained, 1 + backward_share(dimensions))):
            done = counter.taken()
            flops += passes * forward_flops(dimensions, done.tokens, done.pairs, done.targets)
        peak = peak_memory_gib()
        metrics = {
            "perf/memory_planned_gib": self.plan.memory.largest / GIB,
            "perf/memory_peak_gib": peak.get("device", peak["host"]),
        }
        if "device" in peak:
            metrics["perf/memory_reserved_gib"] = torch.cuda.max_memory_reserved() / GIB
        seconds = times.get("time/score", 0.0) + times.get("time/update", 0.0)
        if self.plan.speed is not None and seconds > 0:
            metrics["perf/mfu"] = flops / seconds / (self.plan.speed.tflops * 1e12)
        return metrics
