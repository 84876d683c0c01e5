import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from grace_exp.config.backbone import PoolingConfig
from grace_exp.config.hardware import HardwareConfig
from grace_exp.data.prompts import Prompt
from grace_exp.policy.packing import Region, TextSequence
from grace_exp.policy.policy import Policy


def make_sequences(
    groups: Sequence[Sequence[int]], seed: int = 0, temperature: float = 1.0, head: int = 0
) -> list[TextSequence]:
    """A group a list of rationale lengths, each group with a prompt of its own, shuffled over groups.

    All prompts begin with the same `head` tokens.
    """
    draw = random.Random(seed)
    sequences = []
    for lengths in groups:
        own = tuple(draw.randrange(1024) for _ in range(draw.randrange(3, 20)))
        prompt = Prompt((*range(head), *own), draw.randrange(0, 3))
        for length in lengths:
            sequences.append(TextSequence(prompt, tuple(draw.randrange(1024) for _ in range(length)), temperature))
    draw.shuffle(sequences)
    return sequences


@dataclass(frozen=True)
class Plain:
    """One sequence, computed with full logits in a row of its own."""

    embedding: Tensor
    logprobs: Tensor


def plain_forward(
    model: nn.Module, sequence: TextSequence, pooling: PoolingConfig, region: Region | None = None
) -> Plain:
    """The definition: whole logits, all hidden states, no padding, no packing."""
    prompt, completion = list(sequence.prompt.token_ids), list(sequence.completion_ids)
    output = model(torch.tensor([prompt + completion]), output_hidden_states=True, use_cache=False)
    logprobs = (output.logits[0].float() / (sequence.temperature or 1.0)).log_softmax(-1)
    places = range(len(prompt) - 1, len(prompt) + len(completion) - 1)
    hidden = output.hidden_states[pooling.layer][0].float()
    start, end = {
        "text_and_rationale": (sequence.prompt.pool_start, None),
        "rationale": (len(prompt), None),
        "text": (sequence.prompt.pool_start, len(prompt)),
    }[region or pooling.region]
    pooled = hidden[start:end]
    embedding = {"mean": pooled.mean(0), "last": pooled[-1], "max": pooled.amax(0)}[pooling.method]
    return Plain(embedding, torch.stack([logprobs[i, t] for i, t in zip(places, completion, strict=True)]))


def hardware(**settings: Any) -> HardwareConfig:
    return HardwareConfig(name="cpu", **settings)


@pytest.fixture
def policy(model: PreTrainedModel) -> Callable[..., Policy]:
    """Makes a policy of the test's own tiny model: pooling and hardware settings by keyword."""

    def make(other: nn.Module | None = None, *, pooling: PoolingConfig | None = None, **settings: Any) -> Policy:
        chosen: Any = other or model
        return Policy(chosen, pooling or PoolingConfig(), hardware(**settings), pad_token_id=2)

    return make


@pytest.fixture
def sequences() -> Callable[..., list[TextSequence]]:
    return make_sequences


@pytest.fixture
def plain() -> Callable[..., Plain]:
    return plain_forward
