"""Measure how far the engine's probabilities are from the trainer's."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from grace_exp.config.objective import ImportanceConfig
from grace_exp.objective.importance import importance_weights, row_sums
from grace_exp.objective.kl import MAX_LOG_RATIO
from grace_exp.rollout.protocol import Completion
from grace_exp.training.module import StepModule
from grace_exp.training.step.rollouts import Rollouts
from grace_exp.training.step.step_scores import StepScores

Reduce = Callable[[Tensor, str], Tensor]
"""Reduces a tensor over processes, elementwise, by `sum` or `max`."""


def engine_logprobs(completions: Sequence[Completion], like_NT: Tensor) -> Tensor:
    """Return the engine's log-probs in the shape of `like_NT` [n, longest]; nan after a rationale's end."""
    logprobs_NT = torch.full(like_NT.shape, torch.nan)
    for row, completion in zip(logprobs_NT, completions, strict=True):
        row[: len(completion.logprobs)] = torch.tensor(completion.logprobs)
    return logprobs_NT.to(like_NT.device, like_NT.dtype)


def step_mismatch(
    rollouts: Rollouts, scores: StepScores, config: ImportanceConfig, module: StepModule
) -> dict[str, float]:
    """Return `mismatch_metrics` of what the engine wrote in this step, without stored rationales.

    Args:
        rollouts: Rollouts of this process.
        scores: Scores of the step.
        config: The importance correction in use.
        module: The module, which reduces over processes.
    """
    fresh = [instance_rollouts for instance_rollouts in rollouts.instances if not instance_rollouts.stored]
    group = rollouts.only(fresh).group
    trainer_NT = scores.logprobs(group)
    lengths_N = torch.tensor([len(rollout.completion.token_ids) for rollout in group], device=trainer_NT.device)
    mask_NT = torch.arange(trainer_NT.shape[1], device=trainer_NT.device) < lengths_N[:, None]
    engine_NT = engine_logprobs([rollout.completion for rollout in group], trainer_NT)

    def reduce(value: Tensor, how: str) -> Tensor:
        reduced = module.trainer.strategy.reduce(value, reduce_op=how)
        assert isinstance(reduced, Tensor)
        return reduced

    return mismatch_metrics(engine_NT, trainer_NT, mask_NT, config, reduce)


def mismatch_metrics(
    engine_NT: Tensor, trainer_NT: Tensor, mask_NT: Tensor, config: ImportanceConfig, reduce: Reduce
) -> dict[str, float]:
    """Return `mismatch/*` over the rationale tokens of all processes whose engine log-prob is finite.

    - `logprob_abs_mean`, `logprob_abs_max`: |trainer - engine|, nats.
    - `k3`: estimate of KL(engine || trainer) per token (`objective.kl`).
    - `ratio_mean`, `ratio_max`: trainer / engine probability of a token, the importance weight before any cap.
    - `ess_token`, `ess_sequence`: effective sample size, (sum w)^2 / (n sum w^2), of the weights of tokens and of whole
      rationales: 1 if both policies agree, 1 / n if one weight outweighs all others.
    - `truncated_share`: share of tokens whose weight `objective.importance` caps; 0 without it.
    - `masked_share`, `nonfinite`: share and number of tokens left out because the engine's log-prob is nan or infinite.

    Args:
        engine_NT: Log-probs of the group's tokens, [n, longest].
        trainer_NT: The trainer's log-probs of the same tokens.
        mask_NT: The rationale's tokens, [n, longest] bool.
        config: The importance correction in use.
        reduce: Reduces over processes, by sum or maximum.
    """
    finite_NT = mask_NT & torch.isfinite(engine_NT)
    rows = finite_NT.nonzero()[:, 0]
    old, wrote = trainer_NT[finite_NT].double(), engine_NT[finite_NT].double()
    difference = old - wrote
    bounded = difference.clamp(max=MAX_LOG_RATIO)
    ratio = bounded.exp()
    written_N = finite_NT.any(dim=1)
    of_sequences = row_sums(difference, rows, len(mask_NT))[written_N].clamp(max=MAX_LOG_RATIO).exp()
    capped = torch.zeros_like(ratio)
    if config.mode != "none":
        capped = (importance_weights(old, wrote, rows, len(mask_NT), config) > config.cap).double()
    summands = {
        "all": mask_NT.sum(),
        "tokens": finite_NT.sum(),
        "sequences": written_N.sum(),
        "absolute": difference.abs().sum(),
        "k3": (torch.expm1(bounded) - bounded).sum(),
        "ratio": ratio.sum(),
        "ratio_square": ratio.square().sum(),
        "sequence_ratio": of_sequences.sum(),
        "sequence_ratio_square": of_sequences.square().sum(),
        "capped": capped.sum(),
    }
    reduced = reduce(torch.stack([value.double() for value in summands.values()]), "sum")
    total = dict(zip(summands, reduced.tolist(), strict=True))
    zero = difference.new_zeros(1)
    largest = reduce(torch.stack([torch.cat([v, zero]).max() for v in (difference.abs(), ratio)]), "max").tolist()
    tokens, sequences = max(total["tokens"], 1.0), max(total["sequences"], 1.0)
    figures = {
        "logprob_abs_mean": total["absolute"] / tokens,
        "logprob_abs_max": largest[0],
        "k3": total["k3"] / tokens,
        "ratio_mean": total["ratio"] / tokens,
        "ratio_max": largest[1],
        "ess_token": _effective_share(total["ratio"], total["ratio_square"], tokens),
        "ess_sequence": _effective_share(total["sequence_ratio"], total["sequence_ratio_square"], sequences),
        "truncated_share": total["capped"] / tokens,
        "masked_share": (total["all"] - total["tokens"]) / max(total["all"], 1.0),
        "nonfinite": total["all"] - total["tokens"],
    }
    return {f"mismatch/{name}": value for name, value in figures.items()}


def _effective_share(total: float, square: float, count: float) -> float:
    return total**2 / (count * square) if square else 0.0
