"""Seeded sampling inside transformers' `generate`: every sequence draws from a stream of its own."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

from grace_exp.rollout.protocol import Request


class SeededSampler(LogitsProcessor):
    """Chooses each next token itself and leaves `generate` only that one.

    `generate` samples a batch from one global stream, so a rationale would depend on its neighbours. Here token t of
    sequence s is the inverse of the cumulative distribution at one uniform number fixed by (request seed, sample, t).
    """

    def __init__(
        self, requests: Sequence[Request], samples: Sequence[int], prompt_width: int, device: torch.device
    ) -> None:
        """Draw the uniform numbers of every row.

        Args:
            requests: The request of every row.
            samples: Which of its request's n samples a row is.
            prompt_width: Columns of the (left-padded) prompts; column prompt_width + t holds rationale token t.
            device: Where the logits are.
        """
        self._prompt_width = prompt_width
        longest = max(request.max_tokens for request in requests)
        uniforms = np.stack(
            [
                np.random.Generator(np.random.Philox(key=[request.seed, sample])).random(longest)
                for request, sample in zip(requests, samples, strict=True)
            ]
        )
        self._uniforms = torch.from_numpy(uniforms).to(device)
        temperatures = torch.tensor([request.temperature for request in requests], device=device)
        self._greedy = temperatures == 0
        self._temperatures = torch.where(self._greedy, 1.0, temperatures)[:, None]
        self.logprobs = torch.zeros(len(requests), longest, device=device)
        """Log-probs of the chosen tokens, [rows, tokens]."""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Replace the scores [rows, vocabulary] by 0 at the chosen token and -inf elsewhere."""
        position = input_ids.shape[1] - self._prompt_width
        logprobs = torch.log_softmax(scores.float() / self._temperatures, dim=-1)
        # float64: a float32 running sum over 150k tokens loses the tail.
        cumulative = logprobs.double().exp_().cumsum_(dim=-1)
        targets = self._uniforms[:, position, None] * cumulative[:, -1:]
        sampled = torch.searchsorted(cumulative, targets, right=True).clamp_(max=scores.shape[-1] - 1)
        chosen = torch.where(self._greedy[:, None], scores.argmax(dim=-1, keepdim=True), sampled)
        self.logprobs[:, position] = logprobs.gather(1, chosen).squeeze(1)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)  # type: ignore[return-value]


class OwnLimit(StoppingCriteria):
    """Stops every row at its own request's `max_tokens`."""

    def __init__(self, requests: Sequence[Request], prompt_width: int, device: torch.device) -> None:
        """Take the limit of every row's request; see `SeededSampler`."""
        self._limits = torch.tensor([request.max_tokens for request in requests], device=device) + prompt_width

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: object) -> Tensor:
        """Which rows are done, [rows] bool."""
        return input_ids.shape[1] >= self._limits
