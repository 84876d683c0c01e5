"""Ask the engine once for all rationales of a step, and sort its answers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import Tensor

from grace_exp.config.rollout import RolloutConfig
from grace_exp.data.batch import Instance, Role, TextBatch
from grace_exp.data.prompts import Prompt, PromptBuilder, RoleText
from grace_exp.encoder.modes import writes
from grace_exp.policy.packing import TextSequence
from grace_exp.policy.pooled_states import PooledStates, StatePooling
from grace_exp.rollout.protocol import Completion, Request, RolloutEngine, derive_seed

NO_RATIONALE = Completion((), (), "stop")
"""The completion of a text that is embedded without a rationale."""
TRAINED_ROLES = {"positive": (Role.POSITIVE,), "query": (Role.QUERY,), "both": (Role.POSITIVE, Role.QUERY)}
"""The texts whose rationales are trained, by `RolloutConfig.policy_role`."""
SIDES: dict[Role, Literal["positive", "query"]] = {Role.POSITIVE: "positive", Role.QUERY: "query"}
"""Their names in `RewardInputs`."""


@dataclass(frozen=True, slots=True, eq=False)
class Rollout:
    """A rationale with its origin. Two rollouts are equal only if they are the same object, whatever their tokens."""

    instance: Instance
    role: Role
    text: str
    prompt: Prompt
    completion: Completion
    temperature: float

    def sequence(self) -> TextSequence:
        """The sequence that the policy scores."""
        return TextSequence(self.prompt, self.completion.token_ids, self.temperature)


@dataclass(frozen=True, slots=True, eq=False)
class InstanceRollouts:
    """All rationales of one instance.

    Attributes:
        instance: The instance.
        samples: Rationales by role: K for a trained text, one for an anchor, one for each negative; with
            `anchor_rationales=false` an empty one for texts of the other side.
        greedy: The greedy rationale by trained role, if the objective's baseline needs it.
        behaviour: For a stored instance: log-probs of each trained rollout's tokens under the policy that wrote it, as
            the trainer scored them then. None: written in this step.
    """

    instance: Instance
    samples: Mapping[Role, Sequence[Rollout]]
    greedy: Mapping[Role, Rollout]
    behaviour: Sequence[Tensor] | None = None

    @property
    def stored(self) -> bool:
        """Whether an earlier step wrote the rationales."""
        return self.behaviour is not None


@dataclass(frozen=True)
class Rollouts:
    """The rationales of a step on this process; the position says which group a rationale belongs to.

    Attributes:
        instances: The instances in their order.
        roles: The texts whose rationales are trained.
        group_size: K.
        pooled: Hidden states of rationales that are not trained, if the engine pooled them.
    """

    instances: list[InstanceRollouts]
    roles: tuple[Role, ...]
    group_size: int
    pooled: Mapping[Rollout, PooledStates] = field(default_factory=dict)

    @property
    def per_instance(self) -> int:
        """Trained rationales per instance: K for each trained text."""
        return len(self.roles) * self.group_size

    @property
    def group(self) -> list[Rollout]:
        """The trained rationales: by instance, then by trained text in the order of `roles`, K rationales each."""
        return [rollout for written in self.instances for role in self.roles for rollout in written.samples[role]]

    def for_role(self, role: Role) -> list[Rollout]:
        """Return the rationales of one text of every instance, by instance."""
        return [rollout for written in self.instances for rollout in written.samples[role]]

    def greedy(self, role: Role) -> list[Rollout]:
        """Return the greedy rationale of one trained text of every instance."""
        return [written.greedy[role] for written in self.instances]

    def others(self) -> list[Rollout]:
        """All rationales that are not trained: those of anchors and negatives, and greedy ones."""
        roles = [role for role in (Role.QUERY, Role.POSITIVE, Role.NEGATIVE) if role not in self.roles]
        greedy = [rollout for written in self.instances for rollout in written.greedy.values()]
        return [*(rollout for role in roles for rollout in self.for_role(role)), *greedy]

    def only(self, instances: Sequence[InstanceRollouts]) -> "Rollouts":
        """Return the rollouts with other instances."""
        return replace(self, instances=list(instances))

    def prompts_cut(self) -> int:
        """The number of this process's texts that were too long for their prompt."""
        everything = (*self.group, *self.others())
        return len({(r.instance.index, r.role, r.text) for r in everything if r.prompt.text_tokens_cut})


@dataclass(frozen=True)
class _Wanted:
    """One text for which rationales are asked."""

    instance: Instance
    role: Role
    text: str
    number: int
    greedy: bool


@dataclass(frozen=True)
class StepRequests:
    """All requests of a step, and where each answer belongs.

    Attributes:
        step: Number of the step.
    """

    step: int
    _instances: Sequence[Instance]
    _wanted: list[_Wanted]
    _prompts: list[Prompt]
    _requests: list[Request]
    _config: RolloutConfig

    @property
    def requests(self) -> list[Request]:
        """The requests of one call; texts without a rationale have none.

        The list is empty for a process without instances. It must call the engine anyway, because others may share the
        engine and wait for it.
        """
        return [request for request in self._requests if request.n]

    def answered(self, answers: Sequence[Sequence[Completion]]) -> Rollouts:
        """Return the step's rollouts from the engine's answers, in the order of `requests`."""
        samples: dict[int, dict[Role, list[Rollout]]] = {
            instance.index: {role: [] for role in Role} for instance in self._instances
        }
        best_of: dict[int, dict[Role, Rollout]] = {instance.index: {} for instance in self._instances}
        if len(answers) != len(self.requests):
            raise ValueError(f"{len(answers)} answers to {len(self.requests)} requests")
        pooled: dict[Rollout, PooledStates] = {}
        following = iter(answers)
        for wanted, prompt, request in zip(self._wanted, self._prompts, self._requests, strict=True):
            index, role = wanted.instance.index, wanted.role
            completions = next(following) if request.n else [NO_RATIONALE]
            written = []
            for answer in completions:
                # Stored separately from the completion, which later steps may reuse with other weights.
                completion = replace(answer, pooled=None)
                written.append(Rollout(wanted.instance, role, wanted.text, prompt, completion, request.temperature))
                if answer.pooled is not None:
                    pooled[written[-1]] = answer.pooled
            if wanted.greedy:
                best_of[index][role] = written[0]
            else:
                samples[index][role] += written
        return Rollouts(
            [
                InstanceRollouts(instance, samples[instance.index], best_of[instance.index])
                for instance in self._instances
            ],
            TRAINED_ROLES[self._config.policy_role],
            self._config.group_size,
            pooled,
        )


def step_requests(
    batch: TextBatch,
    prompts: PromptBuilder,
    config: RolloutConfig,
    seed: int,
    *,
    greedy: bool = False,
    max_tokens: int | None = None,
    pooling: Callable[[Prompt], StatePooling] | None = None,
) -> StepRequests:
    """Return the requests for the batch.

    Seeds derive from (run seed, step, role, instance), not from the process or the place in the batch.

    Args:
        batch: The instances.
        prompts: Builds the prompts.
        config: Whose rationales are trained, and the sampling.
        seed: Seed of the run.
        greedy: Also write one greedy rationale for every trained text.
        max_tokens: Token limit of a rationale; None: that of `config`.
        pooling: What the engine pools for rationales that are not trained; None: nothing.
    """
    roles = TRAINED_ROLES[config.policy_role]
    anchors = tuple(role for role in (Role.QUERY, Role.POSITIVE) if role not in roles)
    wanted: list[_Wanted] = []
    for role in (*roles, *anchors):
        wanted += [_Wanted(instance, role, text_of(instance, role), 0, False) for instance in batch.instances]
    for instance in batch.instances:
        wanted += [
            _Wanted(instance, Role.NEGATIVE, text, number, False) for number, text in enumerate(instance.negatives)
        ]
    if greedy:
        wanted += [
            _Wanted(instance, role, text_of(instance, role), 0, True) for role in roles for instance in batch.instances
        ]
    texts = (
        prompts.many(
            RoleText(wanted_text.role, wanted_text.text, wanted_text.instance.source) for wanted_text in wanted
        )
        if wanted
        else []
    )
    requests: list[Request] = []
    for wanted_text, prompt in zip(wanted, texts, strict=True):
        sampled = wanted_text.role in roles and not wanted_text.greedy
        temperature = config.temperature if sampled else 0.0 if wanted_text.greedy else config.anchor_temperature
        requests.append(
            Request(
                prompt_ids=prompt.token_ids,
                n=0 if not writes(config.mode, wanted_text.role) else config.group_size if sampled else 1,
                max_tokens=max_tokens or config.max_tokens,
                temperature=temperature,
                seed=derive_seed(seed, batch.step, wanted_text.role, wanted_text.instance.index, wanted_text.number),
                pooling=None if sampled or pooling is None else pooling(prompt),
            )
        )
    return StepRequests(batch.step, batch.instances, wanted, texts, requests, config)


def write_rollouts(
    batch: TextBatch,
    engine: RolloutEngine,
    prompts: PromptBuilder,
    config: RolloutConfig,
    seed: int,
    *,
    greedy: bool = False,
    max_tokens: int | None = None,
    pooling: Callable[[Prompt], StatePooling] | None = None,
) -> Rollouts:
    """Ask the engine for every rationale of the batch in one call.

    Args:
        batch: The instances.
        engine: The engine.
        prompts: Builds the prompts.
        config: Whose rationales are trained, and the sampling.
        seed: Seed of the run.
        greedy: Also write one greedy rationale for every trained text.
        max_tokens: Token limit of a rationale; None: that of `config`.
        pooling: What the engine pools for rationales that are not trained; None: nothing.
    """
    requests = step_requests(batch, prompts, config, seed, greedy=greedy, max_tokens=max_tokens, pooling=pooling)
    return requests.answered(engine.generate(requests.requests))


def sequences_of(rollouts: Sequence[Rollout]) -> list[TextSequence]:
    """Return the sequence that the policy scores for each rollout."""
    return [rollout.sequence() for rollout in rollouts]


def text_of(instance: Instance, role: Role) -> str:
    """Return the query or the positive of an instance."""
    return instance.query if role is Role.QUERY else instance.positive


def sample_rows(
    rollouts: Rollouts,
    figures: Mapping[Role, Mapping[str, Tensor]],
    decode: Callable[[Sequence[int]], str],
    limit: int,
) -> list[dict[str, object]]:
    """Return rows of the samples table: whole groups first, then the other rationales of the same instances.

    The role names greedy rationales and those of an earlier step as such.

    Args:
        rollouts: This process's rollouts.
        figures: Values of each trained role's rollouts by name, [instances, K].
        decode: Turns token ids into text, for readers only.
        limit: The most group rollouts, but at least those of one instance.
    """
    chosen = rollouts.only(rollouts.instances[: max(1, limit // rollouts.per_instance)])
    stored = {
        rollout
        for written in chosen.instances
        if written.stored
        for many in written.samples.values()
        for rollout in many
    }
    greedy = {rollout for written in chosen.instances for rollout in written.greedy.values()}
    flat = {role: {name: values.flatten().tolist() for name, values in of.items()} for role, of in figures.items()}
    places = {rollout: place for role in chosen.roles for place, rollout in enumerate(chosen.for_role(role))}
    rows = []
    for rollout in (*chosen.group, *chosen.others()):
        note = " (stored)" if rollout in stored else " (greedy)" if rollout in greedy else ""
        row: dict[str, object] = {
            "instance": rollout.instance.index,
            "source": rollout.instance.source,
            "role": rollout.role.value + note,
            "text": rollout.text,
            "prompt_tokens": len(rollout.prompt.token_ids),
            "rationale": decode(rollout.completion.token_ids),
            "rationale_tokens": len(rollout.completion.token_ids),
            "finish_reason": rollout.completion.finish_reason,
        }
        if rollout in places:
            row |= {name: values[places[rollout]] for name, values in flat[rollout.role].items()}
        rows.append(row)
    return rows
