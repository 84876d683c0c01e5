"""The pathwise gradient: against the exact gradient of an enumerated expectation, plain autograd, and InfoNCE."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations_with_replacement
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from grace_exp.config.compose import compose_config
from grace_exp.config.root import GraceConfig
from grace_exp.data.batch import Instance, Role
from grace_exp.data.prompts import Prompt
from grace_exp.objective.aggregate import denominator
from grace_exp.policy.packing import Region
from grace_exp.policy.policy import Policy
from grace_exp.policy.tiny import tiny_model
from grace_exp.reward import compose_reward
from grace_exp.rollout.protocol import Completion
from grace_exp.training.baselines.gradient_cache import GradientCache
from grace_exp.training.baselines.infonce_loss import Contrast
from grace_exp.training.step.rewards import StepRewards
from grace_exp.training.step.rollouts import (
    NO_RATIONALE,
    TRAINED_ROLES,
    InstanceRollouts,
    Rollout,
    Rollouts,
    sequences_of,
)
from grace_exp.training.step.step_inputs import StepInputs
from grace_exp.training.step.step_pathwise import StepPathwise, embedding_gradients
from grace_exp.training.step.step_scores import StepScores
from grace_exp.training.step.trained_role import trained_batch
from grace_exp.training.step.update import accumulate_gradients

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Gradients = dict[str, Tensor]
K = 3


class Alone:
    """The only process."""

    global_rank, world_size = 0, 1

    def gather(self, tensor: Tensor) -> Tensor:
        return tensor

    def own(self, tensor: Tensor) -> Tensor:
        return tensor


def settings(tmp_path: Path, *overrides: str) -> GraceConfig:
    # Held-out sets and files aside, what a step reads of a run.
    base = ["+experiment=demo_tiny", "objective=exact", "objective.advantage_scale=none", f"rollout.group_size={K}"]
    return compose_config([*base, *overrides], tmp_path)


def policy_of(config: GraceConfig, model: "PreTrainedModel") -> Policy:
    return Policy(model.train(), config.backbone.pooling, config.hardware, pad_token_id=0)


def prompt(*ids: int) -> Prompt:
    return Prompt((1, 3, 4, *ids, 2), 2)


def rollout(instance: Instance, role: Role, text: Prompt, ids: Sequence[int], *, cut: bool = False) -> Rollout:
    completion = Completion(tuple(ids), (-1.0,) * len(ids), "length" if cut else "stop")
    return Rollout(instance, role, str(text), text, completion, 0.8)


class Step:
    """The parts of a step of given rationales, and the gradients of its updates."""

    def __init__(self, config: GraceConfig, policy: Policy, rollouts: Rollouts) -> None:
        self.config, self.policy, self.rollouts = config, policy, rollouts
        self.inputs = StepInputs(config, Alone(), lambda ids: "", 0)
        self.scores = StepScores(
            policy,
            config.hardware,
            self.inputs.regions,
            encoder=None,
            reference=None,
            entropy=False,
            embedding_gradients=embedding_gradients(config.objective),
        )
        rewards = StepRewards(config, self.scores, Alone(), self.inputs)
        rewards.add(rollouts, rollouts)
        self.roles = rewards.trained_roles(rollouts)
        self.pathwise = StepPathwise(config, policy, Alone(), self.inputs, self.scores, rollouts, self.roles)

    def gradients(self) -> Gradients:
        """The sum over the updates, with no step of an optimizer between them; the model in training mode."""
        config, policy = self.config, self.policy
        part = self.pathwise.part if config.objective.pathwise.weight > 0 else None
        batch = trained_batch(self.rollouts, self.scores, self.roles, lambda tensor: tensor, part)
        updates = config.job.batch_size // config.objective.mini_batch_size
        per_update = len(batch.advantages_GK) // updates
        policy.zero_grad()
        policy.model.train()
        for start in range(0, updates * per_update, per_update):
            mini = batch.part(start, per_update)
            lasts: list[bool] = []

            def backward(loss: Tensor, last: bool, lasts: list[bool] = lasts) -> None:
                lasts.append(last)
                loss.backward()  # type: ignore[no-untyped-call]

            accumulate_gradients(
                policy,
                None,
                mini,
                config.objective,
                token_budget=config.hardware.train_budget,
                divisor=denominator(*mini.counts().tolist(), config.objective, 16),
                backward=backward,
                pathwise=mini.pathwise(start, per_update) if mini.pathwise is not None else None,
            )
            assert lasts == [False] * (len(lasts) - 1) + [True]
        return taken(policy)


def taken(policy: Policy) -> Gradients:
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def assert_equal(found: Gradients, expected: Gradients, tolerance: float = 1e-5) -> None:
    """Within `tolerance` of the largest entry."""
    scale = max(gradient.abs().max().item() for gradient in expected.values())
    assert scale > 1e-3
    for name in found.keys() | expected.keys():
        zero = torch.zeros_like(found.get(name, expected.get(name)))  # type: ignore[arg-type]
        difference = (found.get(name, zero) - expected.get(name, zero)).abs().max().item()
        assert difference <= tolerance * scale, (name, difference, scale)


# ---- the expectation, enumerated ------------------------------------------------------------------------------------

VOCABULARY = 12
ANCHOR, NEGATIVES = prompt(5, 6, 7), (prompt(8, 9), prompt(10, 5, 11, 6))
TEXT = prompt(7, 8, 5, 9)
INSTANCE = Instance(index=0, query="q", positive="p", negatives=("a", "b"), source="s")
ENUMERATED = [
    "reward=infonce",
    "data.sources.wordnet.negatives=2",
    "job.batch_size=1",
    "objective.mini_batch_size=1",
    "rollout.group_size=2",
]


def plain_hidden(model: Any, text: Prompt, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Hidden states and logits of one sequence, as transformers gives them."""
    out = model(torch.tensor([[*text.token_ids, *ids]]), output_hidden_states=True)
    return out.hidden_states[-1][0], out.logits[0]


def plain_embedding(model: Any, text: Prompt, ids: Sequence[int]) -> Tensor:
    return plain_hidden(model, text, ids)[0][text.pool_start :].mean(dim=0)


def expected_reward(model: Any) -> Tensor:
    """The sum over the whole vocabulary of pi(r | text) x InfoNCE of its embedding, from formulas written out here."""
    logits = plain_hidden(model, TEXT, ())[1][-1] / 0.8
    anchor = plain_embedding(model, ANCHOR, (4,))
    negatives = [plain_embedding(model, text, (6,)) for text in NEGATIVES]
    rewards = []
    for token in range(VOCABULARY):
        own = plain_embedding(model, TEXT, (token,))
        cosines = torch.stack([functional.cosine_similarity(own, one, dim=0) for one in (anchor, *negatives)])
        rewards.append((cosines / 0.1).log_softmax(dim=0)[0])
    return (logits.softmax(dim=0) * torch.stack(rewards)).sum()


def pair(*tokens: int) -> Rollouts:
    samples = {
        Role.POSITIVE: [rollout(INSTANCE, Role.POSITIVE, TEXT, (token,)) for token in tokens],
        Role.QUERY: [rollout(INSTANCE, Role.QUERY, ANCHOR, (4,))],
        Role.NEGATIVE: [rollout(INSTANCE, Role.NEGATIVE, text, (6,)) for text in NEGATIVES],
    }
    return Rollouts([InstanceRollouts(INSTANCE, samples, {})], (Role.POSITIVE,), len(tokens))


def expected_gradient(config: GraceConfig, policy: Policy) -> Gradients:
    """The expectation over two rationales of what an update descends, of all pairs that can be drawn."""
    with torch.no_grad():
        probabilities = (plain_hidden(policy.model, TEXT, ())[1][-1] / 0.8).softmax(dim=0).tolist()
    total: Gradients = {}
    for first, second in combinations_with_replacement(range(VOCABULARY), 2):
        share = probabilities[first] * probabilities[second] * (1 if first == second else 2)
        for name, gradient in Step(config, policy, pair(first, second)).gradients().items():
            total[name] = total.get(name, torch.zeros_like(gradient)) + share * gradient
    return total


@pytest.fixture
def small() -> "PreTrainedModel":
    return tiny_model(seed=0, vocabulary=VOCABULARY)


def test_both_parts_are_the_gradient_of_the_expected_reward_and_the_policy_gradient_alone_is_not(
    small: "PreTrainedModel", tmp_path: Path
) -> None:
    config = settings(tmp_path, *ENUMERATED)
    policy = policy_of(config, small)
    (-expected_reward(policy.model)).backward()  # type: ignore[no-untyped-call]
    exact = taken(policy)
    assert_equal(expected_gradient(config, policy), exact)
    alone = expected_gradient(
        settings(tmp_path, *ENUMERATED, "rollout.group_size=2", "objective.pathwise.weight=0"), policy
    )
    missing = sum((alone[name] - exact[name]).square().sum().item() for name in exact)
    assert missing > 0.1 * sum(gradient.square().sum().item() for gradient in exact.values())


def test_both_parts_are_what_finite_differences_give(small: "PreTrainedModel", tmp_path: Path) -> None:
    config = settings(tmp_path, *ENUMERATED)
    found = expected_gradient(config, policy_of(config, small))
    model: Any = small.double()
    generator = torch.Generator().manual_seed(0)
    directions = {name: torch.randn(p.shape, generator=generator).double() for name, p in model.named_parameters()}
    directions["model.embed_tokens.weight"][0] = 0  # torch gives padding's embedding no gradient
    values, step = [], 3e-4  # the model's norms compute in float32: a smaller step would show their rounding
    with torch.no_grad():
        for sign in (1, -2):
            for name, parameter in model.named_parameters():
                parameter += sign * step * directions[name]
            values.append(expected_reward(model).item())
    slope = -(values[0] - values[1]) / (2 * step)
    product = sum((found[f"model.{name}"].double() * direction).sum().item() for name, direction in directions.items())
    assert product == pytest.approx(slope, rel=1e-3)


# ---- fixed rationales -----------------------------------------------------------------------------------------------

TEXTS = {
    Role.QUERY: [prompt(20, 21), prompt(30), prompt(40, 41, 42), prompt(50, 51)],
    Role.POSITIVE: [prompt(22, 23, 24), prompt(31, 32), prompt(43), prompt(52, 53, 54, 55)],
}
COUNTS = (1, 0, 2, 1)
"""Negatives of each instance."""
ALONE = "objective.policy_gradient_weight=0"
MIXED = ["data=wordnet_mixed", "data.sources.wordnet.negatives=2", "reward=mixed", "reward.truncation.mode=none"]


def written(role: str) -> Rollouts:
    roles = TRAINED_ROLES[role]
    found = []
    for place, count in enumerate(COUNTS):
        negatives = [prompt(60 + place, 70 + number) for number in range(count)]
        instance = Instance(place, f"q{place}", f"p{place}", tuple(map(str, negatives)), "s")
        samples: dict[Role, list[Rollout]] = {
            one: [
                rollout(
                    instance, one, TEXTS[one][place], range(100 + 9 * k + place, 102 + 9 * k + place + k), cut=k == 1
                )
                for k in range(K if one in roles else 1)
            ]
            for one in (Role.QUERY, Role.POSITIVE)
        }
        samples[Role.NEGATIVE] = [rollout(instance, Role.NEGATIVE, text, (80, 81)) for text in negatives]
        found.append(InstanceRollouts(instance, samples, {}))
    return Rollouts(found, roles, K)


class Plain:
    """Embeddings with gradients, a sequence at a time as transformers computes it."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.found: dict[tuple[Rollout, Region], Tensor] = {}

    def embeddings(self, rollouts: Sequence[Rollout], region: Region) -> Tensor:
        return torch.stack([self._one(one, region) for one in rollouts])

    def _one(self, one: Rollout, region: Region) -> Tensor:
        if (one, region) not in self.found:
            ids = () if region == "text" else one.completion.token_ids
            self.found[one, region] = plain_embedding(self.policy.model, one.prompt, ids)
        return self.found[one, region]


def plain_gradients(step: Step) -> Gradients:
    """Of minus the mean final reward over the kept rationales, by autograd through everything."""
    policy, plain, total, kept = step.policy, Plain(step.policy), torch.zeros(()), 0
    policy.zero_grad()
    for role in step.rollouts.roles:
        inputs = step.inputs.of(plain, step.rollouts, role, step.rollouts.for_role(role))
        if not step.config.objective.pathwise.anchors:
            negatives = inputs.negatives_GMH.detach() if inputs.negatives_GMH is not None else None
            inputs = replace(inputs, anchors_GAH=inputs.anchors_GAH.detach(), negatives_GMH=negatives)
        reward = compose_reward(replace(inputs, differentiable=True), step.config.reward)
        total = total + reward.final_GK[reward.kept_GK].sum()
        kept += int(reward.kept_GK.sum())
    (-total / kept).backward()  # type: ignore[no-untyped-call]
    return taken(policy)


CASES: dict[str, tuple[str, list[str]]] = {
    "paper": ("positive", ["reward=mixed"]),
    "packing off": ("positive", ["hardware.packing=false"]),
    "small micro-batches": ("positive", ["hardware.train_tokens=20", "hardware.score_tokens=30"]),
    "shared head": ("positive", ["hardware.share_head=true"]),
    "kept forwards": ("positive", ["hardware.keep_forward=true", "hardware.train_tokens=40"]),
    "kept forwards, trained only": ("both", ["hardware.keep_forward=true", "objective.pathwise.anchors=false"]),
    "query": ("query", []),
    "both": ("both", ["hardware.train_tokens=40"]),
    "both, faithful": ("both", ["reward=faithful"]),
    "faithful, kept forwards": ("positive", ["reward=faithful", "hardware.keep_forward=true"]),
    "infonce both ways": ("positive", ["reward=infonce_both", "reward.terms.infonce.negatives=all"]),
    "margin": ("positive", ["reward=margin_rank", "reward.truncation.mode=mask"]),
    "without anchors": ("positive", ["objective.pathwise.anchors=false"]),
    "masked": ("positive", ["reward.truncation.mode=mask"]),
    "absolute": ("both", ["reward.truncation.mode=absolute"]),
    "last token": ("positive", ["backbone.pooling.method=last"]),
    "a lower layer": ("positive", ["backbone.pooling.layer=-2"]),
}


def plain_pool(monkeypatch: pytest.MonkeyPatch, overrides: list[str]) -> None:
    """Let `plain_embedding` read what the case pools."""
    layer, last = (-2 if "backbone.pooling.layer=-2" in overrides else -1), "backbone.pooling.method=last" in overrides

    def embedding(model: Any, text: Prompt, ids: Sequence[int]) -> Tensor:
        out = model(torch.tensor([[*text.token_ids, *ids]]), output_hidden_states=True)
        hidden: Tensor = out.hidden_states[layer][0]
        return hidden[-1] if last else hidden[text.pool_start :].mean(dim=0)

    monkeypatch.setitem(globals(), "plain_embedding", embedding)


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_plain_gradient_of_the_mean_reward(
    case: str, model: "PreTrainedModel", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    role, overrides = CASES[case]
    plain_pool(monkeypatch, overrides)
    config = settings(tmp_path, *MIXED, ALONE, f"rollout.policy_role={role}", *overrides)
    step = Step(config, policy_of(config, model), written(role))
    found = step.gradients()
    assert_equal(found, plain_gradients(step), 3e-5)


@pytest.mark.parametrize("keep", ["true", "false"])
@pytest.mark.parametrize("packing", ["true", "false"])
def test_anchors_without_rationales_have_a_gradient_too(
    model: "PreTrainedModel", tmp_path: Path, packing: str, keep: str
) -> None:
    """Also where a bare text and a text with rationales have one prompt."""
    hardware = [f"hardware.packing={packing}", f"hardware.keep_forward={keep}"]
    role = ["rollout.policy_role=query", "rollout.anchor_rationales=false"]
    config = settings(tmp_path, *MIXED, ALONE, "reward=infonce", *role, *hardware)
    rollouts = written("query")

    def bare(one: Rollout) -> Rollout:
        return replace(one, completion=NO_RATIONALE)

    instances = []
    for one in rollouts.instances:
        samples = {
            name: list(found) if name is Role.QUERY else [*map(bare, found)] for name, found in one.samples.items()
        }
        instances.append(replace(one, samples=samples))
    first = instances[0].samples[Role.QUERY][0]
    instances[1].samples[Role.POSITIVE][0] = replace(instances[1].samples[Role.POSITIVE][0], prompt=first.prompt)  # type: ignore[index]
    step = Step(config, policy_of(config, model), rollouts.only(instances))
    assert_equal(step.gradients(), plain_gradients(step), 3e-5)


def test_updates_add_up_to_the_step(model: "PreTrainedModel", tmp_path: Path) -> None:
    """At equal weights; each update carries the whole step's reward through the embeddings of its own instances."""
    role = ["rollout.policy_role=both", "+reward.terms.faithfulness.weight=1"]
    once = settings(tmp_path, *MIXED, ALONE, *role)
    many = settings(tmp_path, *MIXED, ALONE, *role, "objective.mini_batch_size=2")
    policy = policy_of(once, model)
    whole = Step(once, policy, written("both")).gradients()
    found = Step(many, policy, written("both")).gradients()
    assert_equal({name: gradient / 2 for name, gradient in found.items()}, whole)


def test_later_updates_are_embedded_and_rewarded_anew(model: "PreTrainedModel", tmp_path: Path) -> None:
    config = settings(tmp_path, *MIXED, ALONE, "objective.mini_batch_size=2")
    policy = policy_of(config, model)
    step = Step(config, policy, written("positive"))
    before = step.pathwise.part(0, 2)
    with torch.no_grad():
        policy.model.get_input_embeddings().weight.mul_(1.3)
    after = step.pathwise.part(2, 2)
    fresh = Step(config, policy, step.rollouts).pathwise.part(0, 2)
    assert after.value.item() == pytest.approx(fresh.value.item(), abs=1e-5)
    assert abs(after.value.item() - before.value.item()) > 1e-3


def test_adapters_with_dropout_are_differentiated_at_the_embeddings_that_were_rewarded(
    model: "PreTrainedModel", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import peft

    lora = peft.LoraConfig(r=4, lora_dropout=0.4, target_modules="all-linear", init_lora_weights=False)
    adapted: Any = peft.get_peft_model(model, lora)
    config = settings(tmp_path, *MIXED, "+backbone.lora={rank: 4, dropout: 0.4}", "hardware.train_tokens=40")
    policy = policy_of(config, adapted)
    step = Step(config, policy, written("positive"))
    seen: dict[bool, list[Tensor]] = {False: [], True: []}
    hidden = Policy._hidden_states

    def watched(self: Policy, batch: Any, layer: int) -> Any:
        found = hidden(self, batch, layer)
        seen[torch.is_grad_enabled()].append(found[1].detach())
        return found

    monkeypatch.setattr(Policy, "_hidden_states", watched)
    step.gradients()
    # First the trained rationales, then the others; the update takes the others first.
    without, with_gradient = seen[False], seen[True]
    assert len(without) == len(with_gradient) > 3
    order = sorted(with_gradient, key=lambda one: (one.shape, one.flatten()[0].item()))
    for one, other in zip(sorted(without, key=lambda one: (one.shape, one.flatten()[0].item())), order, strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(seen[False][0], policy_hidden_without_dropout(policy, step))


def policy_hidden_without_dropout(policy: Policy, step: Step) -> Tensor:
    policy.model.eval()
    sequences = sequences_of(step.rollouts.group)
    batch = policy.collate(sequences, policy.plan(sequences, step.config.hardware.train_tokens)[0])
    with torch.no_grad():
        return policy._hidden_states(batch, -1)[1]


def test_fixed_rationales_of_queries_train_as_contrastive_on_rationales(
    model: "PreTrainedModel", tmp_path: Path
) -> None:
    reward = ["reward=infonce", "reward.terms.infonce.temperature=0.05", "reward.terms.infonce.negatives=all"]
    data = [
        "data=wordnet_mixed",
        "data.sources.wordnet.negatives=2",
        "rollout.policy_role=query",
        "rollout.group_size=1",
    ]
    config = settings(tmp_path, *data, *reward, ALONE)
    policy = policy_of(config, model)
    rollouts = written("query")
    rollouts = Rollouts(
        [replace(one, samples={**one.samples, Role.QUERY: one.samples[Role.QUERY][:1]}) for one in rollouts.instances],
        rollouts.roles,
        1,
    )
    found = Step(config, policy, rollouts).gradients()

    texts = [*rollouts.group, *rollouts.for_role(Role.POSITIVE), *rollouts.for_role(Role.NEGATIVE)]
    policy.zero_grad()
    cache = GradientCache(policy, [sequences_of(texts)], "text_and_rationale", 10_000)
    four = slice(0, 4), slice(4, 8), slice(8, None)
    _, gradients = Contrast(*(cache.embeddings_NH[part] for part in four)).gradients(0.05)
    cache.backward(
        torch.cat([gradients.queries, gradients.positives, gradients.negatives]), lambda loss, last: loss.backward()
    )
    assert_equal(found, taken(policy), 1e-5)


def test_a_weight_of_zero_leaves_the_step_as_it_was(model: "PreTrainedModel", tmp_path: Path) -> None:
    """Bit for bit that of the objective without the setting, and no embedding carries a gradient."""
    rollouts, weights = written("positive"), ["objective.pathwise.weight=0"]
    plain = settings(tmp_path, *MIXED, "objective=rloo", "objective.length_normalizer=1")
    config = settings(tmp_path, *MIXED, *weights)
    policy = policy_of(config, model)
    assert embedding_gradients(config.objective) == "none"
    first, second = (Step(one, policy, rollouts).gradients() for one in (plain, config))
    torch.testing.assert_close(second, first, rtol=0, atol=0)


def test_both_weights_scale_their_parts(model: "PreTrainedModel", tmp_path: Path) -> None:
    rollouts = written("positive")

    def gradients(policy_gradient: float, pathwise: float) -> Gradients:
        weights = [f"objective.policy_gradient_weight={policy_gradient}", f"objective.pathwise.weight={pathwise}"]
        config = settings(tmp_path, *MIXED, *weights)
        return Step(config, policy_of(config, model), rollouts).gradients()

    first, second = gradients(1, 0), gradients(0, 1)
    expected = {name: 0.5 * first[name] + 3 * second.get(name, torch.zeros_like(first[name])) for name in first}
    assert_equal(gradients(0.5, 3), expected)
