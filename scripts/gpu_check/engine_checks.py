"""The checks of list B: vLLM beside the policy, with random weights of the true shapes."""

import importlib.util
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import torch
from check_models import (
    BACKBONES,
    CUDA,
    PROMPT,
    autocast,
    groups,
    optimizer,
    planned,
    policy,
    random_model,
    run_config,
    update,
)
from check_report import Figure, Skip
from command_checks import finished, rows

from grace_exp.config.vllm_package import vllm_problem
from grace_exp.policy.packing import TextSequence
from grace_exp.policy.policy import Policy
from grace_exp.rollout.protocol import Completion, Request
from grace_exp.rollout.vllm.memory import GIB

TOKENS = 64 if CUDA else 12


def _need_vllm() -> None:
    if problem := vllm_problem("gpu" if CUDA else "cpu"):
        raise Skip(problem)


@contextmanager
def _engine(*overrides: str) -> Iterator[tuple[Any, Policy, float]]:
    """Start an engine beside its policy; return it and the seconds of its start."""
    _need_vllm()
    from grace_exp.rollout.vllm.build import build_vllm

    config, _ = planned(run_config(BACKBONES[0], "rollout=vllm", "backbone.gradient_checkpointing=true", *overrides))
    model = random_model(BACKBONES[0], checkpointing=True)
    start = time.perf_counter()
    with closing(build_vllm(config, model, (2,))) as engine:
        yield engine, policy(model, config, packing=False, share_head=False), time.perf_counter() - start


def _requests(count: int, n: int, tokens: int = TOKENS) -> list[Request]:
    prompts = [groups(1, seed=seed, k=1)[0].prompt.token_ids[:PROMPT] for seed in range(count)]
    return [Request(prompt, n, tokens, 1.0, seed) for seed, prompt in enumerate(prompts)]


def _difference(reader: Policy, requests: Sequence[Request], answers: list[list[Completion]]) -> float:
    """Return the mean absolute difference between the log-probs of engine and policy, nats."""
    from grace_exp.data.prompts import Prompt

    written = [
        (TextSequence(Prompt(request.prompt_ids, 0), one.token_ids), one.logprobs)
        for request, answer in zip(requests, answers, strict=True)
        for one in answer
    ]
    with autocast(CUDA):
        scored = reader.score([sequence for sequence, _ in written])
    engine = torch.zeros_like(scored.logprobs_NT)
    for row, (_, logprobs) in zip(engine, written, strict=True):
        row[: len(logprobs)] = torch.tensor(logprobs, device=engine.device)
    return float((scored.logprobs_NT - engine)[scored.mask_NT].abs().mean())


def agreement() -> list[Figure]:
    """Check that an engine starts, loads the weights, and has the policy's log-probs, in bf16 and in float32."""
    figures = []
    for dtype, high in (("bfloat16", 0.05), ("float32", 1e-3)) if CUDA else (("float32", 1e-4),):
        with _engine(f"rollout.vllm.dtype={dtype}") as (engine, reader, started):
            asked = _requests(4, 2)
            found = _difference(reader, asked, engine.generate(asked))
        figures += [
            Figure(f"start, {dtype}", started, "s"),
            Figure(f"mean absolute difference, {dtype}", found, "nats", 0, high),
        ]
    return figures


def syncs() -> list[Figure]:
    """Check that after each of five updates the engine uses the new weights, tied head included, and no old prefix."""
    with _engine() as (engine, reader, _):
        asked, chosen, differences, seconds = _requests(4, 2), optimizer(reader, 1e-4), [], []
        engine.generate(asked)
        for _ in range(5):
            engine.sleep()
            update(reader, chosen, groups(1), bf16=CUDA)
            start = time.perf_counter()
            engine.sync(reader.model)
            answers = engine.generate(asked[:1])
            seconds.append(time.perf_counter() - start)
            differences.append(_difference(reader, asked[:1], answers))
    return [
        Figure("largest mean absolute difference after a sync", max(differences), "nats", 0, 0.05 if CUDA else 1e-4),
        Figure("wake, sync and one request", sum(seconds) / len(seconds), "s", high=30.0),
    ]


def sleeping() -> list[Figure]:
    """Check that sleep frees the engine's memory, ten cycles leak nothing, and log-probs are right afterwards."""
    if not CUDA:
        raise Skip("on a CPU no engine sleeps")
    with _engine() as (engine, reader, _):
        asked = _requests(2, 2)
        engine.generate(asked)
        awake, asleep = torch.cuda.mem_get_info()[0], []
        for _ in range(10):
            engine.sleep()
            asleep.append(torch.cuda.mem_get_info()[0])
            engine.generate(asked)
        found = _difference(reader, asked, engine.generate(asked))
    return [
        Figure("given back", (asleep[0] - awake) / GIB, "GiB", low=3.0),
        Figure("drift over ten cycles", abs(asleep[-1] - asleep[0]) / GIB, "GiB", high=0.2),
        Figure("mean absolute difference afterwards", found, "nats", 0, 0.05),
    ]


def true_steps() -> list[Figure]:
    """Run three steps with vLLM and its probe: with all weights, and with each way of sending adapters."""
    _need_vllm()
    figures = []
    lora = "backbone.lora={rank: 4}"
    for name, overrides in (
        ("all weights", []),
        ("merged adapters", [lora, "rollout.vllm.lora=merged"]),
        ("adapters alone", [lora, "rollout.vllm.lora=adapter"]),
    )[: 3 if CUDA else 1]:
        folder = finished(["rollout=vllm", "rollout.vllm.probe=true", "job.steps=3", *overrides])
        last = rows(folder)[-1]
        figures += [
            Figure(f"mismatch/logprob_abs_mean, {name}", float(last["mismatch/logprob_abs_mean"]), "nats", 0, 0.1),
            Figure(f"mismatch/ess_token, {name}", float(last["mismatch/ess_token"]), "", 0.9, 1.001),
            Figure(f"time/step, {name}", float(last["time/step"]), "s"),
        ]
    return figures


def throughput() -> list[Figure]:
    """Measure tokens per second of 160 and 640 rationales, with CUDA graphs and without."""
    figures = []
    for eager in ("false", "true") if CUDA else ("true",):
        with _engine(f"rollout.vllm.eager={eager}") as (engine, _, _):
            engine.generate(_requests(2, 2))
            for texts in (20, 80) if CUDA else (2,):
                asked = [replace(request, max_tokens=512 if CUDA else 16) for request in _requests(texts, 8)]
                start = time.perf_counter()
                answers = engine.generate(asked)
                took = time.perf_counter() - start
                written = sum(len(one.token_ids) for answer in answers for one in answer)
                name = f"{8 * texts} rationales, CUDA graphs {'off' if eager == 'true' else 'on'}"
                figures.append(Figure(name, written / took, "tokens/s", low=2000.0 if CUDA else None))
    return figures


def missing() -> str | None:
    """Return why list B cannot run here; None if it can."""
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed"
    return vllm_problem("gpu" if CUDA else "cpu")
