"""The engine that runs anywhere: transformers' `generate` on the policy's own weights."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel

from grace_exp.rollout.protocol import Completion, Request
from grace_exp.rollout.sampling import OwnLimit, SeededSampler


class TransformersEngine:
    """Writes rationales with the live model: nothing to copy, nothing to synchronise.

    Each prompt is read once, its key-value cache then serves all n of its rationales.

    Args:
        model: A causal language model, with or without peft adapters.
        end_token_ids: Tokens that end a rationale.
        pad_token_id: Fills shorter rows; masked by position, so it may equal an end token.
        batch_tokens: Upper bound of sequences x (prompt + max_tokens) decoded at once.
        precision: Enters the autocast context of the device, e.g. Lightning's precision plugin's `forward_context`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        end_token_ids: Sequence[int],
        pad_token_id: int,
        batch_tokens: int,
    ) -> None:
        self._model = model
        self._end_token_ids = list(end_token_ids)
        self._pad_token_id = pad_token_id
        self._batch_tokens = batch_tokens

    def sync(self, model: nn.Module) -> None:
        """Nothing to do: the engine reads the policy's own weights."""

    def close(self) -> None:
        """Nothing to give back."""

    @torch.no_grad()
    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """Answer every request, in order.

        Raises:
            torch.OutOfMemoryError: A batch does not fit; lower `rollout.batch_tokens`.
        """
        was_training = self._model.training
        self._model.eval()
        try:
            answers: dict[int, list[Completion]] = {}
            for indices in self._batches(requests):
                for index, completions in zip(indices, self._generate_batch([requests[i] for i in indices]), strict=True):
                    answers[index] = completions
        finally:
            self._model.train(was_training)
        return [answers[index] for index in range(len(requests))]

    def _batches(self, requests: Sequence[Request]) -> Iterator[list[int]]:
        """Indices of requests of similar length, within the token budget; a request is never split."""
        order = sorted(range(len(requests)), key=lambda i: (len(requests[i].prompt_ids), requests[i].max_tokens))
        batch: list[int] = []
        sequences = longest = 0
        for index in order:
            request = requests[index]
            widest = max(longest, len(request.prompt_ids) + request.max_tokens)
            if batch and (sequences + request.n) * widest > self._batch_tokens:
                yield batch
                batch, sequences, widest = [], 0, len(request.prompt_ids) + request.max_tokens
            batch.append(index)
            sequences, longest = sequences + request.n, widest
        if batch:
            yield batch

    def _generate_batch(self, requests: Sequence[Request]) -> list[list[Completion]]:
        device = self._model.device
        width = max(len(request.prompt_ids) for request in requests)
        ids = torch.full((len(requests), width), self._pad_token_id, device=device)
        mask = torch.zeros_like(ids)
        for row, request in enumerate(requests):
            ids[row, width - len(request.prompt_ids) :] = torch.tensor(request.prompt_ids, device=device)
            mask[row, width - len(request.prompt_ids) :] = 1

        rows = list(chain.from_iterable([row] * request.n for row, request in enumerate(requests)))
        row_requests = [requests[row] for row in rows]
        samples = list(chain.from_iterable(range(request.n) for request in requests))
        cache = self._read_prompts(ids, mask)
        select = torch.tensor(rows, device=device)
        cache.batch_select_indices(select)
        sampler = SeededSampler(row_requests, samples, width, device)
        output = self._model.generate(
            inputs=ids[select],
            attention_mask=mask[select],
            past_key_values=cache,
            logits_processor=[sampler],
            stopping_criteria=[OwnLimit(row_requests, width, device)],
            max_new_tokens=max(request.max_tokens for request in requests),
            do_sample=False,
            eos_token_id=self._end_token_ids,
            pad_token_id=self._pad_token_id,
        )
        sampled, logprobs = output[:, width:].tolist(), sampler.logprobs.tolist()
        flat = iter(zip(row_requests, sampled, logprobs, strict=True))
        return [[self._completion(*next(flat)) for _ in range(request.n)] for request in requests]

    def _read_prompts(self, ids: torch.Tensor, mask: torch.Tensor) -> DynamicCache:
        """The key-value cache of all prompt tokens but the last, which `generate` reads itself."""
        cache = DynamicCache(config=self._model.config)
        if ids.shape[1] > 1:
            positions = (mask.cumsum(dim=1) - 1).clamp_(min=0)
            self._model(
                input_ids=ids[:, :-1],
                attention_mask=mask[:, :-1],
                position_ids=positions[:, :-1],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        return cache

    def _completion(self, request: Request, sampled: list[int], logprobs: list[float]) -> Completion:
        tokens = sampled[: request.max_tokens]
        end = next((i for i, token in enumerate(tokens) if token in self._end_token_ids), None)
        length = len(tokens) if end is None else end + 1
        return Completion(tuple(tokens[:length]), tuple(logprobs[:length]), "length" if end is None else "stop")
