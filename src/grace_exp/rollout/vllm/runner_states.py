"""Pool hidden states from vLLM's model runner, step by step.

The runner keeps the last layer's states of a step between `execute_model` and `sample_tokens`; this module wraps both.
Both of vLLM's runners work this way: the one for CPUs, and the one for GPUs, whose source was read but not run.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grace_exp.policy.pooled_states import Method, PooledStates, StatePooling
from grace_exp.rollout.vllm.constants import BLOCK_TOKENS
from grace_exp.rollout.vllm.one_token_more import mark_of

_PREFIXES = 4096
"""Prompt prefixes of whole blocks whose pooled states are kept: vLLM does not recompute what its cache holds."""


@dataclass
class _Sequence:
    """A prompt and its rationale in the engine; positions count from the prompt's start."""

    prompt: tuple[int, ...]
    start: int
    slot: int
    position: int = -1
    """The next position; -1: nothing has been computed."""
    text: Tensor | None = None
    whole: bool = True
    """Whether all pooled tokens up to `position` were seen."""


class RunnerStates:
    """Pools the states of the requests of one call."""

    def __init__(self, runner: Any) -> None:
        """Wrap the methods of a model runner.

        Args:
            runner: A model runner of vLLM.
        """
        self._runner = runner
        self._execute: Callable[..., Any] = runner.execute_model
        self._sample: Callable[..., Any] = runner.sample_tokens
        runner.execute_model, runner.sample_tokens = self._executing, self._sampling
        self._method: Method = "mean"
        self._sequences: list[_Sequence] = []
        self._by_id: dict[str, _Sequence] = {}
        self._scheduled: Any = None
        self._rationales: Tensor | None = None
        self._before: Tensor | None = None
        """The pooled states without the newest token: vLLM may compute a step more than it returns."""
        self._prefixes: OrderedDict[tuple[object, ...], Tensor] = OrderedDict()

    def begin(self, prompts: Sequence[tuple[int, ...]], poolings: Sequence[StatePooling]) -> None:
        """Start a call.

        Args:
            prompts: Prompts of the marked requests, in the order of their numbers.
            poolings: The pooling of each; all have the same method and pool the last layer.
        """
        self._by_id.clear()
        self._rationales = self._before = None
        self._sequences = [
            _Sequence(prompt, pooling.start, slot)
            for slot, (prompt, pooling) in enumerate(zip(prompts, poolings, strict=True))
        ]
        if poolings:
            self._method = poolings[0].method

    def forget(self) -> None:
        """Forget the states of prefixes; called when the weights have changed and vLLM's prefix cache is empty."""
        self._prefixes.clear()

    def found(self, number: int, tokens: int) -> PooledStates | None:
        """Return the states of a marked request that got `tokens` tokens; None if some of its states were not seen."""
        sequence = self._sequences[number]
        computed = sequence.position - len(sequence.prompt)
        if not sequence.whole or sequence.text is None or self._rationales is None or self._before is None:
            return None
        if computed not in (tokens, tokens + 1):
            return None
        source = self._rationales if computed == tokens else self._before
        # Copies, because views would keep the whole call's states in memory.
        return PooledStates(
            sequence.text.clone(),
            source[sequence.slot].clone(),
            len(sequence.prompt) - sequence.start,
            tokens,
            self._method,
        )

    # ---- inside vLLM's step ---------------------------------------------------------------------------------------

    def _executing(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        self._scheduled = scheduler_output
        for new in scheduler_output.scheduled_new_reqs if self._sequences else ():
            number = mark_of(new.sampling_params)
            if number is not None:
                self._by_id.setdefault(new.req_id, self._sequences[number])
        return self._execute(scheduler_output, *args, **kwargs)

    def _sampling(self, *args: Any, **kwargs: Any) -> Any:
        state = self._runner.execute_model_state
        if state is not None and self._by_id:
            self._take(state)
        return self._sample(*args, **kwargs)

    def _take(self, state: Any) -> None:
        """Add all rows of a step: single tokens of rationales together, parts of prompts one by one."""
        hidden = state.hidden_states
        slots: list[int] = []
        places: list[int] = []
        offset = 0
        for request_id, first, count in self._rows(state):
            sequence = self._by_id.get(request_id)
            if sequence is not None and count:
                if count == 1 and first == sequence.position >= len(sequence.prompt):
                    slots.append(sequence.slot)
                    places.append(offset)
                    sequence.position += 1
                else:
                    self._take_part(sequence, first, hidden[offset : offset + count])
            offset += count
        if slots:
            rationales, before = self._of_rationales(hidden)
            rows = torch.tensor(slots, device=hidden.device)
            states = hidden[torch.tensor(places, device=hidden.device)].float()
            old = rationales[rows]
            before[rows] = old
            rationales[rows] = _joined(self._method, old, states)

    def _rows(self, state: Any) -> list[tuple[str, int, int]]:
        """Return the request, first position and number of tokens of each row of a step, in the order of the states."""
        batch = getattr(state, "input_batch", None)
        if batch is not None:  # vLLM's runner for GPUs
            firsts, counts = batch.num_computed_tokens_np.tolist(), batch.num_scheduled_tokens.tolist()
            return list(zip(batch.req_ids, firsts, counts, strict=False))
        batch, scheduled = self._runner.input_batch, self._scheduled.num_scheduled_tokens
        firsts = batch.num_computed_tokens_cpu[: len(batch.req_ids)].tolist()
        return [(name, first, scheduled.get(name, 0)) for name, first in zip(batch.req_ids, firsts, strict=True)]

    def _take_part(self, sequence: _Sequence, first: int, states: Tensor) -> None:
        if sequence.position < 0:
            sequence.position = first
            if (
                first > sequence.start
            ):  # vLLM's prefix cache holds the tokens before; they were pooled when they were computed
                sequence.text = self._prefix(sequence, first)
                sequence.whole = sequence.text is not None
        if first > sequence.position:
            sequence.whole = False
        if not sequence.whole:
            return
        states = states[sequence.position - first :].float()  # states that vLLM recomputes after a pause count once
        length = len(sequence.prompt)
        inside = max(0, min(length - sequence.position, len(states)))
        skipped = min(max(0, sequence.start - sequence.position), inside)
        if inside > skipped:
            self._take_text(sequence, sequence.position + skipped, states[skipped:inside])
        rest = states[inside:]
        if len(rest):
            rationales, before = self._of_rationales(states)
            for row in rest:
                before[sequence.slot] = rationales[sequence.slot]
                rationales[sequence.slot] = _joined(self._method, rationales[sequence.slot], row)
        sequence.position += len(states)

    def _take_text(self, sequence: _Sequence, first: int, states: Tensor) -> None:
        """Add tokens of a prompt from position `first` on, all of which are pooled."""
        if self._method == "mean":
            running = states.cumsum(dim=0)
        else:
            running = states.cummax(dim=0).values if self._method == "max" else states
        if sequence.text is not None:
            running = _joined(self._method, sequence.text, running)
        sequence.text = running[-1]
        end = first + len(states)
        for boundary in range(first - first % BLOCK_TOKENS + BLOCK_TOKENS, end + 1, BLOCK_TOKENS):
            key = (sequence.start, self._method, sequence.prompt[:boundary])
            self._prefixes[key] = running[boundary - first - 1].clone()
            self._prefixes.move_to_end(key)
        while len(self._prefixes) > _PREFIXES:
            self._prefixes.popitem(last=False)

    def _prefix(self, sequence: _Sequence, end: int) -> Tensor | None:
        key = (sequence.start, self._method, sequence.prompt[:end])
        if key in self._prefixes:
            self._prefixes.move_to_end(key)
        return self._prefixes.get(key)

    def _of_rationales(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pooled states, [sequences, hidden], with and without the newest tokens."""
        if self._rationales is None or self._before is None:
            fill = -torch.inf if self._method == "max" else 0.0
            shape = (len(self._sequences), like.shape[-1])
            self._rationales = torch.full(shape, fill, dtype=torch.float32, device=like.device)
            self._before = self._rationales.clone()
        return self._rationales, self._before


def _joined(method: Method, before: Tensor, states: Tensor) -> Tensor:
    """Add one token to the pooled states of each row."""
    if method == "mean":
        return before + states
    return torch.maximum(before, states) if method == "max" else states
