"""Pool hidden states while transformers' `generate` writes, so that embeddings need no second forward."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, PreTrainedModel

from grace_exp.policy.layer_states import module_of_layer, states_in
from grace_exp.policy.pooled_states import Method, PooledStates, StatePooling


class StateTap(threading.local):
    """The hidden states of the last forward, separately for each thread."""

    states: Tensor

    def __reduce__(self) -> tuple[type["StateTap"], tuple[()]]:
        """Make a new tap in another process; an encoder may be sent to other processes."""
        return type(self), ()

    @contextmanager
    def on(self, model: PreTrainedModel, layer: int) -> Iterator[None]:
        """Record the output of a layer; threads that decode must start inside."""

        def keep(_module: nn.Module, _args: Any, output: Any) -> None:
            self.states = states_in(output)

        handle = module_of_layer(model, layer).register_forward_hook(keep)
        try:
            yield
        finally:
            handle.remove()


class StatePool(LogitsProcessor):
    """The pooled hidden states of one batch.

    As a logits processor it sees every token that was fed: `generate` calls it after each forward, before it chooses
    the next token. The scores do not change. The last token of a rationale is not fed by `generate`: see `unfed`.
    """

    def __init__(
        self,
        tap: StateTap,
        poolings: Sequence[StatePooling | None],
        rows: Tensor,
        limits: Tensor,
        end_token_ids: Tensor,
        prompt_width: int,
    ) -> None:
        """Start without pooled states.

        Args:
            tap: Tap of the layer that is pooled.
            poolings: The pooling of each prompt; None: its states are not pooled.
            rows: For every row that is decoded, the number of its prompt, [rows].
            limits: Longest rationale of every row, [rows].
            end_token_ids: Tokens that end a rationale, [n].
            prompt_width: Number of columns of the padded prompts.
        """
        self._tap = tap
        self._poolings = poolings
        self._rows = rows
        self._limits = limits
        self._ends = end_token_ids
        self._prompt_width = prompt_width
        self._method: Method = next(pooling.method for pooling in poolings if pooling is not None)
        nowhere = prompt_width
        starts = [nowhere if pooling is None else pooling.start for pooling in poolings]
        self._starts = torch.tensor(starts, device=rows.device)
        self._wanted = (self._starts < nowhere)[rows]
        self._text: Tensor | None = None
        self._text_tokens = torch.zeros_like(self._starts)
        self._rationale: Tensor | None = None
        self._tokens = torch.zeros_like(rows)
        self._ended = torch.zeros_like(rows, dtype=torch.bool)
        self._fed: Tensor | None = None

    def keep(self, rows: Tensor) -> None:
        """Note that from now on only these rows [n] are decoded; the last token of the other rows was fed."""
        self._fed = rows

    def read(self, positions: Tensor, mask: Tensor) -> None:
        """Add the states of prompt columns that were read; columns that all prompts share are read by one row.

        Args:
            positions: Positions of the columns' tokens in the prompts, [prompts, columns].
            mask: 1 at real tokens, [prompts, columns].
        """
        member = (mask == 1) & (positions >= self._starts[:, None])
        self._text_tokens += member.sum(dim=1)
        self._text = _pooled(self._method, self._text, self._tap.states, member)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Add the state of the last token of each row [rows, tokens]."""
        if input_ids.shape[1] == self._prompt_width:  # the last token of the prompt
            self._text_tokens += 1
            self._text_tokens = self._text_tokens[self._rows]
            text = None if self._text is None else self._text[self._rows]
            self._text = _pooled(self._method, text, self._tap.states, self._wanted[:, None])
        else:
            tokens, states, alive = input_ids[:, -1], self._tap.states, self._alive()
            if self._fed is not None:
                tokens, states = self._scattered(self._fed, tokens, states)
            self._add(tokens, states, alive)
        return scores

    def unfed(self) -> Tensor:
        """Return the rows whose last token has not been fed, [n]."""
        return self._alive().nonzero()[:, 0]

    def add_last(self, rows: Tensor, tokens: Tensor) -> None:
        """Add the states of the last tokens [n] of the rows [n] from `unfed`, after they were fed."""
        everywhere, states = self._scattered(rows, tokens, self._tap.states)
        self._add(everywhere, states, torch.zeros_like(self._ended).index_fill_(0, rows, True))

    def _scattered(self, rows: Tensor, tokens: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens and states for all rows, with zeros where nothing was fed."""
        all_states = states.new_zeros(len(self._rows), 1, states.shape[-1])
        all_states[rows] = states
        everywhere = self._rows.new_zeros(len(self._rows))
        everywhere[rows] = tokens
        return everywhere, all_states

    def _alive(self) -> Tensor:
        return self._wanted & ~self._ended & (self._tokens < self._limits)

    def _add(self, tokens: Tensor, states: Tensor, alive: Tensor) -> None:
        self._rationale = _pooled(self._method, self._rationale, states, alive[:, None])
        self._tokens += alive
        self._ended |= torch.isin(tokens, self._ends)

    def found(self) -> list[PooledStates | None]:
        """Return the pooled states of every row."""
        assert self._text is not None and self._rationale is not None
        numbers = zip(self._text_tokens.tolist(), self._tokens.tolist(), self._wanted.tolist(), strict=True)
        return [
            PooledStates(text, rationale, text_tokens, tokens, self._method) if wanted else None
            for text, rationale, (text_tokens, tokens, wanted) in zip(self._text, self._rationale, numbers, strict=True)
        ]


def _pooled(method: Method, before: Tensor | None, states: Tensor, member: Tensor) -> Tensor:
    """Add more tokens to pooled states.

    Args:
        method: The pooling method.
        before: The states pooled so far, float32 [n, hidden].
        states: Hidden states [n, tokens, hidden], or [1, tokens, hidden] of tokens that all rows share.
        member: Which of the tokens count, [n, tokens].
    """
    count, hidden = len(member), states.shape[-1]
    if before is None:
        before = torch.full((count, hidden), -torch.inf if method == "max" else 0.0, device=states.device)
    if not bool(member.any()):
        return before
    wide = states.float()
    if method == "mean":
        with torch.autocast(states.device.type, enabled=False):
            if len(states) == 1:
                return before + member.float() @ wide[0]
            return before + (member.float()[:, None] @ wide)[:, 0]
    if method == "max":
        return torch.maximum(before, wide.masked_fill(~member[:, :, None], -torch.inf).amax(dim=1))
    last = member.shape[1] - 1 - member.flip(1).int().argmax(dim=1)
    rows = torch.arange(count, device=states.device) if len(states) > 1 else torch.zeros_like(last)
    return torch.where(member.any(dim=1)[:, None], wide[rows, last], before)
