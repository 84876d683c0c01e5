"""Texts to embeddings with the present policy: write a rationale, then the same forward and pooling as in training."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from grace_exp.data.batch import Role
from grace_exp.data.prompts import PromptBuilder
from grace_exp.policy.packing import Region, TextSequence
from grace_exp.policy.policy import Policy
from grace_exp.rollout.protocol import Completion, Request, RolloutEngine, derive_seed


@dataclass(frozen=True)
class Embedded:
    """Texts with what the policy made of them.

    Attributes:
        embeddings: Per pooling region, float32 [texts, hidden]. The region `text` does not see the rationale, so it is
            the prompt-only embedding.
        completions: The rationales.
    """

    embeddings: dict[Region, NDArray[np.float32]]
    completions: list[Completion]


def embed_texts(
    texts: Sequence[str],
    role: Role,
    *,
    policy: Policy,
    engine: RolloutEngine,
    prompts: PromptBuilder,
    max_tokens: int,
    temperature: float,
    seed: int,
    regions: Sequence[Region],
) -> Embedded:
    """Embed texts; equal texts are written to and computed once, each by one of the processes of a group.

    Args:
        texts: What to embed.
        role: Chooses the instruction of the prompt.
        policy: The model.
        engine: Writes the rationales, with the policy's present weights.
        prompts: Builds the prompts.
        max_tokens: Rationale budget.
        temperature: 0 is greedy.
        seed: Of sampling; a text's rationale depends on it and the text alone.
        regions: Pooling regions to return.
    """
    everything = list(dict.fromkeys(texts))
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    distinct = everything[rank::world] or everything[:1]  # a process without a share repeats a text: all take part
    built = prompts.many((role, text) for text in distinct)
    answers = engine.generate(
        [
            Request(prompt.token_ids, 1, max_tokens, temperature, derive_seed(seed, "evaluation", role, text))
            for prompt, text in zip(built, distinct, strict=True)
        ]
    )
    completions = [answer[0] for answer in answers]
    scored = policy.score(
        [
            TextSequence(prompt, completion.token_ids, temperature)
            for prompt, completion in zip(built, completions, strict=True)
        ],
        regions,
    )
    share = Embedded({region: values.cpu().numpy() for region, values in scored.embeddings.items()}, completions)
    parts = [share]
    if world > 1:
        parts = [share] * world
        dist.all_gather_object(parts, share)
    place = {text: divmod(number, world) for number, text in enumerate(everything)}  # (row, process)
    order = [place[text] for text in texts]
    return Embedded(
        {region: np.stack([parts[process].embeddings[region][row] for row, process in order]) for region in regions},
        [parts[process].completions[row] for row, process in order],
    )
