"""Batches, updates and token budgets."""

from grace_exp.config.groups import Groups
from grace_exp.config.require import Require


def size_rules(config: Groups, require: Require) -> None:
    """Check that sizes divide each other, and that a step fits its token budgets."""
    batch, mini_batch, rollout = config.job.batch_size, config.objective.mini_batch_size, config.rollout
    updates = config.job.steps * (batch // mini_batch)
    longest = max(rollout.max_tokens, config.evaluation.max_tokens or 0)
    require(
        batch % mini_batch == 0,
        f"job.batch_size={batch} is not a multiple of objective.mini_batch_size={mini_batch}",
    )
    require(
        mini_batch % config.processes == 0,
        f"objective.mini_batch_size={mini_batch} is not a multiple of the {config.processes} processes of "
        "hardware.devices x hardware.nodes",
    )
    require(
        config.optim.warmup_steps <= updates or updates == 0,  # 0: the batch is too small, which is said above
        f"optim.warmup_steps={config.optim.warmup_steps} is more than the {updates} optimizer updates of "
        "job.steps x job.batch_size / objective.mini_batch_size",
    )
    require(
        rollout.batch_tokens >= config.prompt.max_tokens + longest,
        f"rollout.batch_tokens={rollout.batch_tokens} cannot hold one sequence of prompt.max_tokens="
        f"{config.prompt.max_tokens} + {longest} rationale tokens (rollout.max_tokens, evaluation.max_tokens)",
    )
    replay = config.objective.replay
    if replay is not None:
        stored = round(replay.share * mini_batch)
        require(
            stored > 0 and stored % config.processes == 0,
            f"objective.replay.share={replay.share} of objective.mini_batch_size={mini_batch} is "
            f"{stored} stored instances an update: it must be a multiple of the {config.processes} processes, and not "
            "0",
        )
