"""Sequences, tokens and FLOPs of a step, by phase."""

from dataclasses import dataclass

from grace_exp.config.root import GraceConfig
from grace_exp.training.plan.dimensions import Dimensions


@dataclass(frozen=True, slots=True)
class Work:
    """What one phase of a step computes, over all processes.

    Attributes:
        sequences: Texts with or without a rationale.
        tokens: Read or written.
        flops: Of the model itself: without what checkpointing computes again.
    """

    sequences: int
    tokens: int
    flops: float


def forward_flops(dimensions: Dimensions, tokens: float, pairs: float, targets: float) -> float:
    """FLOPs of a forward: two for each weight of a matrix and token.

    Args:
        dimensions: Of the model; adapters are left out.
        tokens: Read.
        pairs: Of a token and one that it attends to: length x length / 2 for each sequence.
        targets: Positions whose logits are computed.
    """
    layers = dimensions.shape.layers
    matrices = 2 * layers * dimensions.layer_matrices * tokens
    attention = 4 * layers * dimensions.query_width * pairs
    return matrices + attention + 2 * dimensions.embedding * targets


def backward_share(dimensions: Dimensions) -> int:
    """FLOPs of a backward over those of its forward: gradients of states, and of weights where those train."""
    return 2 if dimensions.lora is None else 1


def step_work(config: GraceConfig, dimensions: Dimensions) -> dict[str, Work]:
    """The phases of one step (rollout, score, update), with the mean lengths that `job.plan` assumes."""
    assumed, rollout, k = config.job.plan, config.rollout, config.rollout.group_size
    prompt = min(assumed.prompt_tokens, config.prompt.max_tokens)
    rationale = 0 if config.method.prompt_only else min(assumed.rationale_tokens, rollout.max_tokens)
    instances = config.job.batch_size
    negatives = max(config.data.negative_counts(), default=0) if config.data.mode != "unsupervised" else 0
    groups = 2 if rollout.policy_role == "both" else 1
    anchors = (2 - groups) + negatives
    if config.method.is_infonce:
        texts = instances * (2 + negatives)
        read = _read(dimensions, texts, 1, prompt, rationale, logits=False)
        # Gradient caching reads every text twice: without gradients, and piece by piece with them.
        phases = {"score": read, "update": _with_backward(dimensions, read)}
        return ({"rollout": _written(dimensions, texts, texts, prompt, rationale)} if rationale else {}) | phases
    trained, others = instances * groups * k, instances * anchors
    shared = k if config.hardware.packing else 1
    group = _read(dimensions, trained, shared, prompt, rationale)
    rest = _read(dimensions, others, 1, prompt, rationale)
    updated = group
    if config.method.name == "rejection_sft":
        updated = _read(dimensions, instances * groups, 1, prompt, rationale)
    return {
        "rollout": _written(dimensions, trained + others, instances * (groups + anchors), prompt, rationale),
        "score": Work(group.sequences + rest.sequences, group.tokens + rest.tokens, group.flops + rest.flops),
        "update": _with_backward(dimensions, updated),
    }


def _read(
    dimensions: Dimensions, sequences: int, shared: int, prompt: int, rationale: int, *, logits: bool = True
) -> Work:
    """Sequences of which every `shared` have one prompt, computed once."""
    tokens = sequences * rationale + sequences * prompt // shared
    pairs = sequences * (rationale * prompt + rationale**2 / 2) + sequences / shared * prompt**2 / 2
    targets = sequences * rationale if logits else 0
    return Work(sequences, tokens, forward_flops(dimensions, tokens, pairs, targets))


def _written(dimensions: Dimensions, sequences: int, prompts: int, prompt: int, rationale: int) -> Work:
    """Rationales, with the prompts read once each."""
    tokens = prompts * prompt + sequences * rationale
    pairs = prompts * prompt**2 / 2 + sequences * (rationale * prompt + rationale**2 / 2)
    return Work(sequences, tokens, forward_flops(dimensions, tokens, pairs, sequences * rationale))


def _with_backward(dimensions: Dimensions, work: Work) -> Work:
    return Work(work.sequences, work.tokens, (1 + backward_share(dimensions)) * work.flops)
