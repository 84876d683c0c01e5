"""Seeded sampling inside transformers' `generate`: every sequence has its own random stream."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, StoppingCriteria

from grace_exp.rollout.protocol import Request

_BLOCK = 128
"""Tokens per block, whose probabilities are summed in float32; most vocabularies are multiples of it."""


class SeededSampler(LogitsProcessor):
    """Chooses each next token and leaves `generate` no other choice.

    `generate` samples a batch from one global stream, so a rationale would depend on the others of its batch. Here,
    token t of sequence s is where the cumulative distribution passes a uniform number that (request seed, sample, t)
    fixes.
    """

    def __init__(
        self, requests: Sequence[Request], samples: Sequence[int], prompt_width: int, device: torch.device
    ) -> None:
        """Draw the uniform numbers of every row.

        Args:
            requests: The request of every row.
            samples: For every row, which of its request's n samples it is.
            prompt_width: Number of columns of the (left-padded) prompts; column prompt_width + t holds rationale token
                t.
            device: The device of the logits.
        """
        self._prompt_width = prompt_width
        longest = max(request.max_tokens for request in requests)
        uniforms = np.stack(
            [
                np.random.Generator(np.random.Philox(key=[request.seed, sample])).random(longest)
                for request, sample in zip(requests, samples, strict=True)
            ]
        )
        self._rows = torch.arange(len(requests), device=device)
        self._uniforms = torch.from_numpy(uniforms).to(device)
        temperatures = torch.tensor([request.temperature for request in requests], device=device)
        self._greedy = temperatures == 0
        self._temperatures = torch.where(self._greedy, 1.0, temperatures)[:, None]
        self.logprobs = torch.zeros(len(requests), longest, device=device)
        """Log-probs of the chosen tokens, [rows, tokens]."""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Replace the scores [rows, vocabulary] by 0 at the chosen token and -inf elsewhere."""
        position = input_ids.shape[1] - self._prompt_width
        logprobs = torch.log_softmax(scores.float() / self._temperatures[self._rows], dim=-1)
        sampled = draw(logprobs.exp(), self._uniforms[self._rows, position])[:, None]
        chosen = torch.where(self._greedy[self._rows, None], scores.argmax(dim=-1, keepdim=True), sampled)
        self.logprobs[self._rows, position] = logprobs.gather(1, chosen).squeeze(1)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)  # type: ignore[return-value]

    def keep(self, rows: Tensor) -> None:
        """Continue with these rows [n] only; they are numbered as at the start."""
        self._rows = rows


def draw(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Return the tokens at which the cumulative distributions pass the uniform numbers, [rows] int64.

    The cumulative sum is taken over blocks of tokens, and then inside one block. A float32 running sum over 150k tokens
    would lose the tail, and a float64 sum over all of them takes as long as a layer of the model.

    Args:
        probabilities: Probabilities in float32, [rows, vocabulary].
        uniforms: Numbers in [0, 1), float64, [rows].
    """
    rows, vocabulary = probabilities.shape
    if missing := -vocabulary % _BLOCK:
        probabilities = nn.functional.pad(probabilities, (0, missing))
    blocks = probabilities.view(rows, -1, _BLOCK)
    masses = blocks.sum(dim=-1)
    ends = masses.double().cumsum(dim=-1)
    targets = uniforms[:, None] * ends[:, -1:]
    block = torch.searchsorted(ends, targets, right=True).clamp_(max=blocks.shape[1] - 1)
    end, mass = ends.gather(1, block), masses.gather(1, block)
    inside = blocks.gather(1, block[:, :, None].expand(-1, -1, _BLOCK)).squeeze(1).double().cumsum_(dim=-1)
    # Relative to the block: its two sums differ in their last bits, and a token of probability 0 must not be chosen.
    share = (1 - (end - targets) / mass).clamp_(min=0)
    token = torch.searchsorted(inside, share * inside[:, -1:], right=True).clamp_(max=_BLOCK - 1)
    return (block * _BLOCK + token).squeeze(1).clamp_(max=vocabulary - 1)


class Finished(StoppingCriteria):
    """Stops a row at an end token or at its request's `max_tokens`, and stops all rows when half of them are done.

    `generate` keeps computing rows that have ended. After such a stop it can be called again with the other rows. So at
    most twice the unfinished rows are computed, and each stop copies at most half of the cache.
    """

    def __init__(
        self, requests: Sequence[Request], end_token_ids: Sequence[int], prompt_width: int, device: torch.device
    ) -> None:
        """Store the limit of every row's request.

        Args:
            requests: The request of every row.
            end_token_ids: Tokens that end a rationale.
            prompt_width: As in `SeededSampler`.
            device: The device of the tokens.
        """
        self._limits = torch.tensor([request.max_tokens for request in requests], device=device) + prompt_width
        self._ends = torch.tensor(end_token_ids, dtype=torch.long, device=device)
        self._ended = torch.zeros(len(requests), dtype=torch.bool, device=device)
        self._rows = torch.arange(len(requests), device=device)
        self._settled = self._ended

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: object) -> Tensor:
        """Return which rows are done, [rows] bool."""
        # Done before this token: the last token of these rows has been fed, and its hidden state is known.
        self._settled = self._ended[self._rows]
        at_limit = input_ids.shape[1] >= self._limits[self._rows]
        done = self._settled | torch.isin(input_ids[:, -1], self._ends) | at_limit
        self._ended[self._rows] = done
        return torch.ones_like(done) if 2 * int(self._settled.sum()) >= len(done) else done

    def rest(self) -> Tensor:
        """Return the rows that are not finished, [n], in order; none if all are done."""
        return self._rows[:0] if bool(self._ended.all()) else self._rows[~self._settled]

    def keep(self, rows: Tensor) -> None:
        """Continue with these rows [n] only; they are numbered as at the start."""
        self._rows = rows
