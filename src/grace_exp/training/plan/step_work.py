"""Sequences, tokens and FLOPs of a step, by phase."""

from dataclasses import dataclass

from grace_exp.config.root import GraceConfig
from grace_exp.reward import required_inputs
from grace_exp.training.plan.dimensions import Dimensions


@dataclass(frozen=True, slots=True)
class Work:
    """What one phase of a step computes, over all processes.

    Attributes:
        sequences: Number of texts with or without a rationale.
        tokens: Number of tokens read or written.
        flops: FLOPs of the model itself, without recomputation.
    """

    sequences: int
    tokens: int
    flops: float

    def __add__(self, other: "Work") -> "Work":
        """Return the sum of both."""
        return Work(self.sequences + other.sequences, self.tokens + other.tokens, self.flops + other.flops)


def forward_flops(dimensions: Dimensions, tokens: float, pairs: float, targets: float) -> float:
    """Return the FLOPs of a forward: two for each weight of a matrix and each token.

    Args:
        dimensions: Dimensions of the model; adapters are not counted.
        tokens: Number of tokens read.
        pairs: Pairs of a token and one it attends to: length x length / 2 for each sequence.
        targets: Positions whose logits are computed.
    """
    layers = dimensions.shape.layers
    matrices = 2 * layers * dimensions.layer_matrices * tokens
    attention = 4 * layers * dimensions.query_width * pairs
    return matrices + attention + 2 * dimensions.embedding * targets


def backward_share(dimensions: Dimensions) -> int:
    """Return the ratio of a backward's FLOPs to its forward's: gradients of states, and of weights if they train."""
    return 2 if dimensions.lora is None else 1


@dataclass(frozen=True, slots=True)
class StepTexts:
    """The texts of a step, over all processes, with the mean lengths that `job.plan` assumes.

    Attributes:
        prompt: Tokens of a prompt.
        rationale: Tokens of a rationale.
        groups: Number of trained texts.
        trained: Number of their rationales.
        anchors: Number of texts of the other side, and negatives, with a rationale.
        bare: Number of such texts without a rationale.
        swapped: Number of trained texts with another text's rationale.
        shared: Number of rationales that share a prompt, which is computed once.
    """

    prompt: int
    rationale: int
    groups: int
    trained: int
    anchors: int
    bare: int
    swapped: int
    shared: int

    def read(self, dimensions: Dimensions, *, logits: bool) -> Work:
        """Return the work of reading the trained rationales."""
        return _read(dimensions, self.trained, self.shared, self.prompt, self.rationale, logits=logits)

    def read_others(self, dimensions: Dimensions) -> Work:
        """Return the work of reading all other rationales, only for their embeddings."""
        written = self.anchors + self.swapped
        return _read(dimensions, written, 1, self.prompt, self.rationale, logits=False) + _read(
            dimensions, self.bare, 1, self.prompt, 0, logits=False
        )


def step_texts(config: GraceConfig) -> StepTexts:
    """Count the texts of a step of a method with rewards."""
    assumed, rollout = config.job.plan, config.rollout
    roles = 2 if rollout.policy_role == "both" else 1
    instances, negatives = config.job.batch_size, _negatives(config)
    # Negatives belong to the documents' side.
    others, documents = 2 - roles, negatives + (rollout.policy_role == "query")
    bare = 0
    if not rollout.anchor_rationales:
        bare = documents if rollout.policy_role == "query" else others
    trained = instances * roles * rollout.group_size
    return StepTexts(
        prompt=min(assumed.prompt_tokens, config.prompt.max_tokens),
        rationale=min(assumed.rationale_tokens, rollout.max_tokens),
        groups=instances * roles,
        trained=trained,
        anchors=instances * (others + negatives - bare),
        bare=instances * bare,
        swapped=trained if "swapped" in required_inputs(config.reward) else 0,
        shared=rollout.group_size if config.hardware.packing else 1,
    )


def step_work(config: GraceConfig, dimensions: Dimensions) -> dict[str, Work]:
    """Return the work of one step by phase (rollout, score, update), with the mean lengths that `job.plan` assumes."""
    if config.method.is_infonce:
        return _infonce_work(config, dimensions)
    texts = step_texts(config)
    group, others = texts.read(dimensions, logits=True), texts.read_others(dimensions)
    rationales = texts.trained + texts.anchors
    return {
        "rollout": _written(dimensions, rationales, texts.groups + texts.anchors, texts.prompt, texts.rationale),
        "score": group + others,
        "update": _updated(config, dimensions, texts),
    }


def _infonce_work(config: GraceConfig, dimensions: Dimensions) -> dict[str, Work]:
    assumed, rollout, method = config.job.plan, config.rollout, config.method
    prompt = min(assumed.prompt_tokens, config.prompt.max_tokens)
    rationale = 0 if method.prompt_only else min(assumed.rationale_tokens, rollout.max_tokens)
    instances, documents = config.job.batch_size, 1 + _negatives(config)
    written = instances * (1 + documents)
    if not rollout.anchor_rationales and not method.prompt_only:
        written = instances * (1 if rollout.policy_role == "query" else documents)
    bare = instances * (1 + documents) - written
    read = _read(dimensions, written, 1, prompt, rationale, logits=False)
    read += _read(dimensions, bare, 1, prompt, 0, logits=False)
    # Gradient caching reads every text twice: without gradients, and then in parts with gradients.
    phases = {"score": read, "update": _with_backward(dimensions, read)}
    return ({"rollout": _written(dimensions, written, written, prompt, rationale)} if rationale else {}) | phases


def _updated(config: GraceConfig, dimensions: Dimensions, texts: StepTexts) -> Work:
    """Return the work of all updates: passes with gradients, and what the pathwise gradient recomputes for them."""
    objective = config.objective
    if config.method.name == "rejection_sft":
        return _with_backward(dimensions, _read(dimensions, texts.groups, 1, texts.prompt, texts.rationale))
    pathwise, both = objective.pathwise.weight > 0, objective.policy_gradient_weight > 0
    group, kept = texts.read(dimensions, logits=both), config.hardware.keeps_forward
    done = _with_backward(dimensions, group, kept=kept)
    if not pathwise:
        return done
    embedded = texts.read(dimensions, logits=False) + texts.read_others(dimensions)
    if objective.pathwise.anchors:
        done += _with_backward(dimensions, texts.read_others(dimensions), kept=kept)
    # The scoring forward also serves the first update, unless dropout changes its embeddings.
    lora = config.backbone.lora
    anew = config.job.batch_size // objective.mini_batch_size - (0 if lora is not None and lora.dropout > 0 else 1)
    done += Work(anew * embedded.sequences, anew * embedded.tokens, anew * embedded.flops)
    if both and objective.pathwise.parts_every_n_steps is not None:  # a second backward pass in every n-th step
        share = backward_share(dimensions) / objective.pathwise.parts_every_n_steps
        done += Work(0, 0, share * group.flops)
    return done


def _negatives(config: GraceConfig) -> int:
    return max(config.data.negative_counts(), default=0) if config.data.mode != "unsupervised" else 0


def _read(
    dimensions: Dimensions, sequences: int, shared: int, prompt: int, rationale: int, *, logits: bool = True
) -> Work:
    """Return the work of reading sequences; every `shared` of them have one prompt, which is computed once."""
    tokens = sequences * rationale + sequences * prompt // shared
    pairs = sequences * (rationale * prompt + rationale**2 / 2) + sequences / shared * prompt**2 / 2
    targets = sequences * rationale if logits else 0
    return Work(sequences, tokens, forward_flops(dimensions, tokens, pairs, targets))


def _written(dimensions: Dimensions, sequences: int, prompts: int, prompt: int, rationale: int) -> Work:
    """Return the work of writing rationales; each prompt is read once."""
    tokens = prompts * prompt + sequences * rationale
    pairs = prompts * prompt**2 / 2 + sequences * (rationale * prompt + rationale**2 / 2)
    return Work(sequences, tokens, forward_flops(dimensions, tokens, pairs, sequences * rationale))


def _with_backward(dimensions: Dimensions, work: Work, *, kept: bool = False) -> Work:
    """Add the backward; with `kept` the forward is that of scoring."""
    return Work(work.sequences, work.tokens, (backward_share(dimensions) + (not kept)) * work.flops)
