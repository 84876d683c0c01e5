"""Every reward with every trained side: what a step writes, computes and updates."""

import json
import math
from typing import Any

import pytest
import torch

from grace_exp.config.compose import conf_dir
from grace_exp.data.batch import Role
from grace_exp.policy.policy import Policy
from grace_exp.rollout.transformers_engine import TransformersEngine
from grace_exp.training.grace import GraceModule
from grace_exp.training.step.update import MiniBatch

REWARDS = sorted(path.stem for path in (conf_dir() / "reward").glob("*.yaml"))
ROLES = ["positive", "query", "both"]
DATA = {"mixed": "wordnet_mixed", "paper_unsupervised": "wordnet_unsup"}
STEP = ["job.steps=1", "objective.mini_batch_size=2"]
K, BATCH = 3, 4  # of the small settings


class Watch:
    """Records the calls of one step to engine, policy and update."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.written: list[int] = []
        self.scored: list[tuple[int, tuple[int, ...]]] = []
        self.trained: list[MiniBatch] = []
        generate, hidden, update = TransformersEngine.generate, Policy._hidden_states, GraceModule._update

        def generating(engine: Any, requests: Any) -> Any:
            self.written.append(sum(request.n for request in requests))
            return generate(engine, requests)

        def forward(policy: Any, batch: Any, layer: int) -> Any:
            rows = batch.input_ids_BL.tolist()
            for row, slot in zip(batch.rows_N.tolist(), batch.slots_N.tolist(), strict=True):
                mine = [b in (0, slot) for b in batch.block_BL[row].tolist()]
                tokens = tuple(token for token, own in zip(rows[row], mine, strict=True) if own)
                self.scored.append((torch.is_grad_enabled(), tokens))
            return hidden(policy, batch, layer)

        def updating(module: Any, step: int, batch: MiniBatch) -> Any:
            self.trained.append(batch)
            return update(module, step, batch)

        monkeypatch.setattr(TransformersEngine, "generate", generating)
        monkeypatch.setattr(Policy, "_hidden_states", forward)
        monkeypatch.setattr(GraceModule, "_update", updating)

    def forwards(self, gradient: bool) -> list[tuple[int, ...]]:
        """Sequences that were computed with or without gradients."""
        return [tokens for graded, tokens in self.scored if graded == gradient]


@pytest.mark.parametrize(("number", "reward"), list(enumerate(REWARDS)), ids=REWARDS)
def test_every_reward_trains_a_step_of_any_side(train, number: int, reward: str) -> None:
    role = ROLES[number % 3]
    untouched = [f"reward={reward}", f"data={DATA.get(reward, 'wordnet')}", f"rollout.policy_role={role}"]
    untouched += ["reward.terms.positive.weight=1"] if reward == "log_rank" else []  # ranks alone have no pathwise part
    run = train(*STEP, *untouched, "objective.advantage_scale=group_std", "objective.pathwise.weight=1")
    assert all(value > 0 for value in run.figure("train/grad_norm"))
    assert all(math.isfinite(float(value)) for value in run.metrics.drop(columns="step").iloc[0])
    assert all(run.figure(f"train/{part}_norm")[0] > 1e-6 for part in ("policy_gradient", "pathwise"))
    assert -1 <= run.figure("train/gradient_cosine")[0] <= 1
    sides = {name.split("/")[0] for name in run.metrics if name.startswith(("positive/", "query/"))}
    assert sides == ({"positive", "query"} if role == "both" else set())
    trained = run.samples.dropna(subset="advantage")
    assert set(trained["role"]) == ({"positive", "query"} if role == "both" else {role})
    assert trained.groupby(["instance", "role"])["advantage"].sum().abs().max() < 1e-4


@pytest.mark.parametrize("role", ROLES)
def test_one_call_to_the_engine_and_one_forward_for_each_sequence(train, monkeypatch, role: str) -> None:
    watch = Watch(monkeypatch)
    train(*STEP, f"rollout.policy_role={role}")
    sides = 2 if role == "both" else 1
    assert watch.written == [BATCH * (sides * K + (2 - sides) + 1)]
    scored = watch.forwards(gradient=False)
    assert len(scored) == watch.written[0]
    (batch,) = watch.trained
    group = [(*one.prompt.token_ids, *one.completion.token_ids) for one in batch.rollouts]
    assert len(group) == sides * K * BATCH
    assert sorted(watch.forwards(gradient=True)) == sorted(group)
    wanted = {"positive": {Role.POSITIVE}, "query": {Role.QUERY}, "both": {Role.POSITIVE, Role.QUERY}}[role]
    assert {one.role for one in batch.rollouts} == wanted


def test_both_sides_train_as_each_does_alone_with_all_samples_as_anchors(train, monkeypatch) -> None:
    """Terms that read no anchor: each side's advantages are those of training it alone, on the same rationales."""
    watch = Watch(monkeypatch)
    terms = {name: None for name in ("positive", "negative", "hard_negative")}
    own = [*STEP, *(f"reward.terms.{name}=null" for name in terms), "reward.terms.consistency.weight=1"]
    for role in ROLES:
        train(*own, f"rollout.policy_role={role}")
    positive, query, both = (batch.advantages_GK for batch in watch.trained)
    interleaved = torch.stack([positive, query], dim=1).flatten(0, 1)
    torch.testing.assert_close(both, interleaved, rtol=0, atol=1e-3)  # divided by a temperature of 0.1
    assert both.abs().max() > 0.01


@pytest.mark.parametrize(("reward", "objective"), [("faithful", "grpo"), ("faithful", "remax"), ("infonce", "remax")])
def test_what_a_reward_or_baseline_asks_for_comes_with_the_same_call(train, monkeypatch, reward, objective) -> None:
    watch = Watch(monkeypatch)
    settings = [f"reward={reward}", f"objective={objective}", "objective.advantage_scale=batch_std"]
    settings.append("hardware.one_pass=false")
    run = train(*STEP, *settings, "rollout.policy_role=both")
    greedy = 2 * BATCH if objective == "remax" else 0
    assert watch.written == [BATCH * (2 * K + 1) + greedy]
    borrowed = 2 * K * BATCH + greedy if reward == "faithful" else 0
    assert len(watch.forwards(gradient=False)) == watch.written[0] + borrowed
    notes = set(run.samples["role"])
    assert notes == {"positive", "query", "negative"} | ({"positive (greedy)", "query (greedy)"} if greedy else set())


@pytest.mark.parametrize("lora", [[], ["+backbone.lora.rank=4"]], ids=["full", "lora"])
def test_what_is_not_trained_is_embedded_as_it_is_written(train, monkeypatch, lora: list[str]) -> None:
    settings = [*STEP, *lora, "objective=remax", "objective.advantage_scale=batch_std"]
    watch = Watch(monkeypatch)
    plain = train(*settings, "hardware.one_pass=false")
    forwards = len(watch.forwards(gradient=False))
    fast = train(*settings, "hardware.one_pass=true")
    computed = len(watch.forwards(gradient=False)) - forwards
    compared = 8  # at first use
    assert forwards == BATCH * (K + 3) and computed == BATCH * K + compared
    for name in ("reward/total/mean", "embed/cos_pos", "embed/cos_neg"):
        assert fast.figure(name)[0] == pytest.approx(plain.figure(name)[0], abs=1e-5)


@pytest.mark.parametrize("lora", [[], ["+backbone.lora.rank=4"]], ids=["full", "lora"])
def test_the_reward_s_encoder_is_the_policy_its_start_or_its_average(train, lora: list[str]) -> None:
    # All by forwards: another encoder has no states of writing, and later steps multiply differences in last bits.
    settings = ["job.steps=3", *lora, "optim.learning_rate=0.01", "reward=infonce", "hardware.one_pass=false"]
    policy = train(*settings)
    runs = {kind: train(*settings, *encoder(kind)) for kind in ("frozen", "ema:0", "ema:0.999999")}
    reward = {kind: run.figure("reward/total/mean") for kind, run in runs.items()}
    # At first all are one; an average without memory stays the policy, one that forgets nothing the start.
    for kind in runs:
        assert reward[kind][0] == pytest.approx(policy.figure("reward/total/mean")[0], abs=1e-5)
    assert reward["ema:0"] == pytest.approx(policy.figure("reward/total/mean"), abs=1e-4)
    assert reward["ema:0.999999"] == pytest.approx(reward["frozen"], abs=1e-4)
    assert abs(reward["frozen"][2] - policy.figure("reward/total/mean")[2]) > 1e-3
    names = {kind: set(run.weights) for kind, run in runs.items()}
    assert names == {kind: set(policy.weights) for kind in runs}  # encoders are in no state dict


def encoder(kind: str) -> list[str]:
    name, _, decay = kind.partition(":")
    return [f"reward.encoder.kind={name}", *([f"reward.encoder.decay={decay}"] if decay else [])]


EVERYTHING = [
    "job.steps=4",
    "objective=copg",
    "objective.mini_batch_size=2",
    "rollout.policy_role=both",
    "data=wordnet_mixed",
    "reward=mixed",
    "reward.encoder.kind=ema",
    "reward.encoder.decay=0.5",
    "+reward.terms.faithfulness.weight=1",
    "logger.samples_per_step=99",
]


def test_average_and_stored_instances_are_resumed(train, tmp_path) -> None:
    whole = train(*EVERYTHING)
    train(*EVERYTHING, "job.steps=2", folder=tmp_path)
    resumed = train(*EVERYTHING, f"job.resume={tmp_path}", folder=tmp_path)
    resumed.assert_continues_as(whole)
    mine, its = (run.checkpoint()["grace"] for run in (resumed, whole))
    torch.testing.assert_close(mine["encoder"], its["encoder"], rtol=0, atol=0)
    texts = [json.dumps(one["stored"], default=torch.Tensor.tolist) for one in (mine, its)]
    assert texts[0] == texts[1]
    assert len(mine["stored"]) == 4 * BATCH
    assert whole.figure("rollout/stored") == [0, 2, 2, 2]
    assert {"positive (stored)", "query (stored)"} <= set(whole.samples["role"])


SILENT = [
    "job.steps=2",
    "rollout.max_tokens=1",  # all run out of tokens, and get the same reward
    "reward.truncation.mode=absolute",
    "+objective.dynamic_sampling.max_rounds=2",
]


def test_groups_without_spread_are_exchanged_and_the_run_is_resumed(train, monkeypatch, tmp_path) -> None:
    watch = Watch(monkeypatch)
    whole = train(*SILENT)
    assert whole.figure("rollout/extra_rounds") == [2, 2]
    assert whole.figure("rollout/zero_spread_dropped") == [2 * BATCH, 2 * BATCH]
    assert whole.figure("rollout/zero_spread_left") == [BATCH, BATCH]
    assert watch.written == [BATCH * (K + 2)] * 6
    assert len({one.instance.index for batch in watch.trained for one in batch.rollouts}) == 2 * BATCH
    train(*SILENT, "job.steps=1", folder=tmp_path)
    train(*SILENT, f"job.resume={tmp_path}", folder=tmp_path).assert_continues_as(whole)


def test_team_credit_gives_the_papers_hard_negatives_an_advantage(train) -> None:
    """Without it their share is rounding, and no advantage differs from zero; rewards are the same."""
    only = [f"reward.terms.{term}=null" for term in ("positive", "negative", "consistency")]
    settings = [*STEP, "reward.terms.hard_negative.weight=1", *only, "reward.truncation.mode=none"]
    without, with_credit = (train(*settings, f"objective.team_credit={weight}") for weight in (0, 1))
    assert without.figure("train/advantage_abs")[0] < 1e-3 < with_credit.figure("train/advantage_abs")[0]
    assert with_credit.figure("train/team_credit_abs")[0] > 1e-6
    assert without.figure("reward/final/mean") == with_credit.figure("reward/final/mean")
