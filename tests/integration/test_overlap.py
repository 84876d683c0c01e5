"""`rollout.overlap=one_step`: which weights write a step, what is trained, and how runs stop and resume."""

import copy
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from grace_exp.errors import EngineFailed, GraceError
from grace_exp.jobs import assemble
from grace_exp.policy.load_backbone import Backbone
from grace_exp.rollout.protocol import Completion, Request
from grace_exp.rollout.transformers_engine import TransformersEngine
from grace_exp.training.checkpoints import Interrupted
from grace_exp.training.grace import GraceModule

STEPS = ["job.steps=4", "job.batch_size=4", "objective.mini_batch_size=2", "optim.learning_rate=0.003"]
TOKEN = "objective.importance.mode=token"
OVERLAP = ["rollout=vllm_server", "rollout.overlap=one_step"]
BEHIND = ["rollout=vllm_server", TOKEN]


class Server:
    """Replaces a server: it has its own weights, which `sync` changes, and records its requests."""

    def __init__(self, backbone: Backbone, delay: int = 0) -> None:
        self.model = copy.deepcopy(backbone.model)
        self.engine = TransformersEngine(
            self.model, end_token_ids=backbone.end_token_ids, pad_token_id=backbone.pad_token_id, batch_tokens=65536
        )
        self.delay = delay
        self.sent: list[dict[str, torch.Tensor]] = []
        self.version = 0
        self.events: list[str] = []
        self.threads: list[str] = []
        self.writing = threading.Lock()
        self.fail_at: int | None = None

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        assert self.writing.acquire(blocking=False), "two calls at one time"
        try:
            if self.fail_at == len([event for event in self.events if event.startswith("write")]):
                raise EngineFailed("the vLLM server is gone (exit status 9): its last words")
            torch.set_num_threads(1)
            self.events.append(f"write {self.version}")
            self.threads.append(threading.current_thread().name)
            return self.engine.generate(requests)
        finally:
            self.writing.release()

    def sync(self, model: nn.Module) -> None:
        assert not self.writing.locked(), "new weights for an engine that writes"
        self.sent.append(copy.deepcopy(model.state_dict()))
        self.version += 1
        self.events.append(f"sync {self.version}")
        if len(self.sent) > self.delay:
            self.model.load_state_dict(self.sent[-1 - self.delay])
            self.engine.sync(self.model)  # adapters are folded into a copy

    def sleep(self) -> None:
        self.events.append("sleep")

    def close(self) -> None:
        pass


Serve = Callable[..., list[Server]]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    """The servers of the runs that follow; `prepare` is called with each."""

    def serve(delay: int = 0, prepare: Callable[[Server], None] = lambda _: None) -> list[Server]:
        made: list[Server] = []

        def build(config: object, backbone: Backbone, **_: object) -> Server:
            made.append(Server(backbone, delay))
            prepare(made[-1])
            return made[-1]

        monkeypatch.setattr(assemble, "build_engine", build)
        return made

    return serve


def test_each_step_is_written_by_the_weights_of_the_step_before(train, serve: Serve, monkeypatch) -> None:
    servers = serve()
    update = GraceModule._update
    monkeypatch.setattr(
        GraceModule,
        "_update",
        lambda self, step, batch: servers[0].events.append("update") or update(self, step, batch),
    )
    run = train(*STEPS, *OVERLAP)
    (server,) = servers
    order = [event for event in server.events if event != "update"]
    assert order == ["write 0", "write 0", "sync 1", "write 1", "sync 2", "write 2", "sync 3", "sync 4"]
    assert server.events.count("update") == 4
    assert server.threads == ["MainThread", *["rollouts-ahead"] * 3]
    assert run.figure("rollout/staleness") == [0, 1, 1, 1]
    assert (pd.read_csv(run.path / "metrics.csv")["time/wait"].dropna() >= 0).sum() >= 3
    assert all(abs(value) < 1e-4 for value in run.figure("mismatch/logprob_abs_max")[:1])
    assert all(value > 1e-4 for value in run.figure("mismatch/logprob_abs_mean")[1:])
    assert all(value != 1 for value in run.figure("train/importance")[1:])


def test_the_next_step_is_under_way_when_this_one_trains(train, serve: Serve, monkeypatch) -> None:
    started, updated = threading.Event(), threading.Event()
    update, generate = GraceModule._update, Server.generate

    def waiting(server: Server, requests: Sequence[Request]) -> list[list[Completion]]:
        if threading.current_thread() is not threading.main_thread():
            started.set()
            assert updated.wait(60)
        return generate(server, requests)

    def updating(module: GraceModule, step: int, batch: object) -> dict[str, float]:
        assert started.wait(60)
        metrics = update(module, step, batch)
        updated.set()
        return metrics

    serve()
    monkeypatch.setattr(Server, "generate", waiting)
    monkeypatch.setattr(GraceModule, "_update", updating)
    run = train(*STEPS, *OVERLAP, "job.steps=2")
    assert run.figure("rollout/staleness") == [0, 1]


def test_without_staleness_it_is_the_run_without_overlap(train, serve: Serve) -> None:
    never = {"delay": 99}  # weights that never change are never old
    serve(**never)
    ahead = train(*STEPS, *OVERLAP)
    serve(**never)
    plain = train(*STEPS, "rollout=vllm_server", TOKEN)
    assert ahead.figure("rollout/staleness") == [0, 1, 1, 1]
    assert_same_training(ahead, plain)


def test_it_is_the_run_of_an_engine_whose_weights_come_a_step_late(train, serve: Serve) -> None:
    serve()
    ahead = train(*STEPS, *OVERLAP)
    serve(delay=1)
    late = train(*STEPS, "rollout=vllm_server", TOKEN)
    assert_same_training(ahead, late)
    serve()
    assert not torch.equal(*(next(iter(run.weights.values())) for run in (ahead, train(*STEPS, *BEHIND))))


def test_what_older_weights_pooled_while_writing_embeds_nothing(train, serve: Serve) -> None:
    """An engine that could pool is not asked to: the states would be those of the step before (`hardware.one_pass`)."""
    serve()
    plain = train(*STEPS, *OVERLAP)
    servers = serve(prepare=lambda server: setattr(server, "pools_states", True))
    assert_same_training(train(*STEPS, *OVERLAP), plain)
    assert servers[0].pools_states


def assert_same_training(ahead, other) -> None:
    torch.testing.assert_close(ahead.weights, other.weights, rtol=0, atol=0)
    metrics = ahead.metrics.drop(columns="rollout/staleness")
    assert metrics.equals(other.metrics[metrics.columns])
    assert ahead.samples.equals(other.samples)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_a_signal_and_resumed(train, serve: Serve, number: signal.Signals, tmp_path: Path) -> None:
    tail = "rollout.tail={quantile: 0.5, margin: 1.0}"
    servers = serve()
    whole = train(*STEPS, *OVERLAP, tail)
    with pytest.raises(Interrupted, match="after step 2 of 4"):
        train(*STEPS, *OVERLAP, tail, folder=tmp_path, signal_in=2, number=number)
    kept = type(whole)(tmp_path).checkpoint()["grace"]["written_ahead"]
    assert kept["step"] == 2 and len(kept["instances"]) == 4
    train(*STEPS, *OVERLAP, tail, f"job.resume={tmp_path}", folder=tmp_path)
    type(whole)(tmp_path).assert_continues_as(whole)
    assert servers[-1].events == ["sync 1", "write 1", "sync 2", "sync 3"]  # step 2 was not written again


def test_more_steps_for_a_finished_run_begin_with_fresh_rationales(train, serve: Serve, tmp_path: Path) -> None:
    serve()
    train(*STEPS, *OVERLAP, "job.steps=2", folder=tmp_path)
    run = train(*STEPS, *OVERLAP, f"job.resume={tmp_path}", folder=tmp_path)
    assert run.figure("rollout/staleness") == [0, 1, 0, 1]


def test_an_error_of_the_engine_ends_the_run_with_its_own_message(train, serve: Serve, tmp_path: Path) -> None:
    serve(prepare=lambda server: setattr(server, "fail_at", 2))
    every = "callbacks.checkpoint.every_n_steps=1"
    with pytest.raises(
        GraceError, match=r"the vLLM server is gone \(exit status 9\)[^\0]*same command and job\.resume="
    ):
        train(*STEPS, *OVERLAP, every, folder=tmp_path)
    serve()
    resumed = train(*STEPS, *OVERLAP, every, f"job.resume={tmp_path}", folder=tmp_path)
    resumed.assert_continues_as(train(*STEPS, *OVERLAP, every))


def test_it_learns_from_rationales_that_are_one_step_old(train, serve: Serve) -> None:
    serve()
    settings = [
        "job.steps=25",
        "job.batch_size=4",
        "rollout.group_size=8",
        "reward.terms.negative=null",
        "reward.terms.consistency=null",
        "reward.terms.hard_negative=null",
        "optim.learning_rate=0.01",
        "backbone.pooling.layer=0",
        "backbone.pooling.region=rationale",
        "+backbone.lora.rank=8",
        "+backbone.lora.alpha=16",
        "callbacks.checkpoint.every_n_steps=0",
        "logger.samples_every_n_steps=0",
    ]
    rewards = train(*settings, *OVERLAP).figure("reward/total/mean")
    assert sum(rewards[-5:]) / 5 - sum(rewards[:5]) / 5 > 2


def test_what_exceeds_the_budget_of_the_step_before_is_cut_and_counts_as_truncated(train, serve: Serve) -> None:
    ends = list(range(40, 200))  # many, so that lengths differ
    serve(prepare=lambda server: setattr(server.engine, "_end_token_ids", ends))
    settings = [*STEPS, "rollout=vllm_server", "rollout.max_tokens=12"]
    free, run = train(*settings), train(*settings, "rollout.tail={quantile: 0.2, margin: 1.0}")
    budgets, longest = run.figure("rollout/token_budget"), run.figure("rollout/tokens_max")
    assert budgets[0] == 12 > budgets[1] and longest == budgets
    assert run.figure("rollout/truncated_share")[1] > free.figure("rollout/truncated_share")[1]
    assert free.figure("rollout/tail_share")[0] == run.figure("rollout/tail_share")[0] >= 0
