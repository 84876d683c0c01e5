"""The engine that runs anywhere: transformers' `generate` on the policy's own weights."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain, takewhile
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import nn
from transformers import DynamicCache, GenerationConfig, PreTrainedModel

from grace_exp.policy.pooled_states import PooledStates
from grace_exp.rollout.merged import MergedCopy
from grace_exp.rollout.protocol import Completion, Request
from grace_exp.rollout.sampling import Finished, SeededSampler
from grace_exp.rollout.state_pool import StatePool, StateTap
from grace_exp.rollout.threads import map_on_threads, shares


class TransformersEngine:
    """Writes rationales with the model itself, or with a merged copy of it if there are adapters.

    The common beginning of all prompts is read once, and the rest of each prompt once. The key-value cache of a prompt
    serves all n of its rationales.
    """

    pools_states = True

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        end_token_ids: Sequence[int],
        pad_token_id: int,
        batch_tokens: int,
        sharded: bool = False,
        training: bool = False,
    ) -> None:
        """Write with `model`.

        Args:
            model: A causal language model, with or without peft adapters.
            end_token_ids: Tokens that end a rationale.
            pad_token_id: Token that fills shorter rows; it is masked by position, so it may equal an end token.
            batch_tokens: Upper bound of sequences x (prompt + max_tokens) decoded at once, by each thread on a CPU.
            sharded: Whether `model`, which is still whole, will be sharded among processes. The engine then writes with
                a separate copy; after a `sync` all processes must call the next `generate`.
            training: Whether the weights change between calls, so that the merged copy is refreshed anyway: `sleep`
                then gives back its memory.
        """
        self._model = model
        self._merged = MergedCopy(model, apart=True) if sharded else None
        self._fresh = False
        self._end_token_ids = list(end_token_ids)
        self._pad_token_id = pad_token_id
        self._batch_tokens = batch_tokens
        self._tap = StateTap()
        self._training = training

    def sync(self, model: nn.Module) -> None:
        """Refresh the merged copy at its next use; without adapters the engine reads the policy's own weights."""
        self._fresh = False

    def _writer(self) -> PreTrainedModel:
        """Return the model that decodes. The copy is made at its first use, when the model is on its device."""
        if self._merged is None:
            if not isinstance(self._model, PeftModel):
                return self._model
            self._merged, self._fresh = MergedCopy(self._model), True
        if not self._fresh:
            self._merged.refresh()
            self._fresh = True
        return self._merged.model

    def sleep(self) -> None:
        """Free the merged copy's memory in training; it is merged again when the engine writes next."""
        if self._training and self._merged is not None and self._merged.releases:
            self._merged.release()
            self._fresh = False

    def close(self) -> None:
        """Do nothing: the engine holds no processes."""

    @torch.no_grad()
    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """Return the completions of every request, in order.

        Raises:
            torch.OutOfMemoryError: A batch does not fit; lower `rollout.batch_tokens`.
        """
        if not requests:
            return []
        workers = torch.get_num_threads() if self._model.device.type == "cpu" else 1
        layers = {request.pooling.layer for request in requests if request.pooling is not None}
        if len(layers) > 1:
            raise ValueError(f"one call pools one layer's hidden states, not those of {sorted(layers)}")
        with _decoding(self._writer()) as model, ExitStack() as taps:
            for layer in layers:
                taps.enter_context(self._tap.on(model, layer))
            parts = map_on_threads(lambda share: self._write(model, requests, share), shares(requests, workers))
        answers = {index: completions for part in parts for index, completions in part.items()}
        return [answers[index] for index in range(len(requests))]

    @torch.no_grad()  # repeated, because the mode belongs to the thread
    def _write(
        self, model: PreTrainedModel, requests: Sequence[Request], share: Sequence[int]
    ) -> dict[int, list[Completion]]:
        """Return the answers to the requests in `share`, by index."""
        answers: dict[int, list[Completion]] = {}
        for indices in self._batches(requests, share):
            written = self._generate_batch(model, [requests[index] for index in indices])
            answers.update(zip(indices, written, strict=True))
        return answers

    def _batches(self, requests: Sequence[Request], share: Sequence[int]) -> Iterator[list[int]]:
        """Yield batches of request indices, of similar length and within the token budget; a request is never split."""
        order = sorted(share, key=lambda i: (len(requests[i].prompt_ids), requests[i].max_tokens))
        batch: list[int] = []
        for index in order:
            wider = [requests[i] for i in (*batch, index)]
            width = max(len(request.prompt_ids) for request in wider) + max(request.max_tokens for request in wider)
            if batch and sum(request.n for request in wider) * width > self._batch_tokens:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def _generate_batch(self, model: PreTrainedModel, requests: Sequence[Request]) -> list[list[Completion]]:
        device = model.device
        prompts = [request.prompt_ids for request in requests]
        width = max(map(len, prompts))
        # Shorter prompts are padded after the tokens that all prompts share (the head of the chat template), read once.
        columns = zip(*(prompt[:-1] for prompt in prompts), strict=False)
        head = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
        ids = torch.full((len(requests), width), self._pad_token_id, device=device)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            rest = width - len(prompt) + head
            ids[row, :head], ids[row, rest:] = torch.tensor(prompt[:head]), torch.tensor(prompt[head:])
            mask[row, :head], mask[row, rest:] = 1, 1

        rows = list(chain.from_iterable([row] * request.n for row, request in enumerate(requests)))
        row_requests = [requests[row] for row in rows]
        samples = list(chain.from_iterable(range(request.n) for request in requests))
        select = torch.tensor(rows, device=device)
        pool = self._pool(requests, row_requests, select, width)
        cache = self._read_prompts(model, ids, mask, head, pool)
        cache.batch_select_indices(select)
        sampler = SeededSampler(row_requests, samples, width, device)
        finished = Finished(row_requests, self._end_token_ids, width, device)
        output, left = self._decode(model, ids[select], mask[select], cache, sampler, finished, pool)
        sampled, logprobs = output[:, width:].tolist(), sampler.logprobs.tolist()
        states: list[PooledStates | None] = [None] * len(rows)
        if pool is not None:
            self._read_last(model, output, mask[select], cache, left, pool)
            states = pool.found()
        flat = iter(zip(row_requests, sampled, logprobs, states, strict=True))
        return [[self._completion(*next(flat)) for _ in range(request.n)] for request in requests]

    def _decode(
        self,
        model: PreTrainedModel,
        ids: torch.Tensor,
        mask: torch.Tensor,
        cache: DynamicCache,
        sampler: SeededSampler,
        finished: Finished,
        pool: StatePool | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode; whenever half of the rows are done, continue with the others.

        Args:
            model: The model that writes.
            ids: Prompts, [rows, width].
            mask: 1 at their real tokens, [rows, width].
            cache: Key-value cache of all prompt columns except the last.
            sampler: Chooses the tokens.
            finished: Says which rows are done.
            pool: Collects the hidden states.

        Returns:
            Prompts and rationales [rows, width], and the rows [n] that were decoded to the end, which the cache holds.
        """
        generate: Any = model.generate
        limit, width = sampler.logprobs.shape[1], ids.shape[1]
        output = ids.new_full((len(ids), width + limit), self._pad_token_id)
        rows = torch.arange(len(ids), device=ids.device)
        while True:
            written = generate(
                inputs=ids,
                attention_mask=mask,
                past_key_values=cache,
                logits_processor=[sampler] if pool is None else [pool, sampler],
                stopping_criteria=[finished],
                max_new_tokens=width + limit - ids.shape[1],
                do_sample=False,
                eos_token_id=self._end_token_ids,
                pad_token_id=self._pad_token_id,
            )
            output[rows, : written.shape[1]] = written
            rest = finished.rest()
            if not len(rest):
                return output[:, : written.shape[1]], rows
            chosen = torch.searchsorted(rows, rest)
            cache.batch_select_indices(chosen)
            ids = written[chosen]
            mask = torch.cat([mask[chosen], mask.new_ones(len(rest), ids.shape[1] - mask.shape[1])], dim=1)
            rows = rest
            sampler.keep(rows)
            finished.keep(rows)
            if pool is not None:
                pool.keep(rows)

    def _pool(
        self, requests: Sequence[Request], row_requests: Sequence[Request], rows: torch.Tensor, width: int
    ) -> StatePool | None:
        """Return the pool for the hidden states of a batch; None if no request asks for them."""
        if all(request.pooling is None for request in requests):
            return None
        limits = torch.tensor([request.max_tokens for request in row_requests], device=rows.device)
        ends = torch.tensor(self._end_token_ids, dtype=torch.long, device=rows.device)
        return StatePool(self._tap, [request.pooling for request in requests], rows, limits, ends, width)

    @staticmethod
    def _read_last(
        model: PreTrainedModel,
        output: torch.Tensor,
        mask: torch.Tensor,
        cache: DynamicCache,
        left: torch.Tensor,
        pool: StatePool,
    ) -> None:
        """Compute the hidden states of the last tokens, which decoding does not need.

        Args:
            model: The model that reads.
            output: Prompts and rationales, [rows, width].
            mask: 1 at the prompts' real tokens, [rows, prompt width].
            cache: Key-value cache of all columns except the last.
            left: The rows in the cache, [n].
            pool: Collects the hidden states.
        """
        rows = pool.unfed()
        if not len(rows):
            return
        if len(rows) < len(left):
            cache.batch_select_indices(torch.searchsorted(left, rows))
        last = output[rows, -1:]
        whole = torch.cat([mask, mask.new_ones(len(mask), output.shape[1] - mask.shape[1])], dim=1)[rows]
        decoder: Any = model.get_decoder()
        decoder(
            input_ids=last,
            attention_mask=whole,
            position_ids=whole.sum(dim=1, keepdim=True) - 1,
            past_key_values=cache,
            use_cache=True,
        )
        pool.add_last(rows, last[:, 0])

    @staticmethod
    def _read_prompts(
        model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, head: int, pool: StatePool | None
    ) -> DynamicCache:
        """Return the key-value cache of all prompt tokens except the last, which `generate` reads itself.

        Args:
            model: The model that reads.
            ids: Prompts, [rows, width].
            mask: 1 at real tokens, [rows, width].
            head: Number of leading columns that are equal in every row.
            pool: Collects the hidden states.
        """
        cache = DynamicCache(config=model.config)
        positions = (mask.cumsum(dim=1) - 1).clamp_(min=0)

        def read(rows: slice, start: int, stop: int) -> None:
            if start < stop:
                model(
                    input_ids=ids[rows, start:stop],
                    attention_mask=mask[rows, :stop],
                    position_ids=positions[rows, start:stop],
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
                if pool is not None:
                    pool.read(positions[:, start:stop], mask[:, start:stop])

        read(slice(0, 1), 0, head)
        if head:
            cache.batch_repeat_interleave(len(ids))
        read(slice(None), head, ids.shape[1] - 1)
        return cache

    def _completion(
        self, request: Request, sampled: list[int], logprobs: list[float], states: PooledStates | None
    ) -> Completion:
        tokens = sampled[: request.max_tokens]
        end = next((i for i, token in enumerate(tokens) if token in self._end_token_ids), None)
        length = len(tokens) if end is None else end + 1
        reason: Literal["stop", "length"] = "length" if end is None else "stop"
        return Completion(tuple(tokens[:length]), tuple(logprobs[:length]), reason, states)


@contextmanager
def _decoding(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Switch to evaluation mode, without the sampling settings that the model's files contain.

    `generate` applies those settings unless the call overrides them. With a repetition penalty (Qwen2.5 has one) the
    rationales would not come from the policy's distribution.
    """
    training, settings = model.training, model.generation_config
    model.eval()
    model.generation_config = GenerationConfig()
    try:
        yield model
    finally:
        model.generation_config = settings
        model.train(training)
