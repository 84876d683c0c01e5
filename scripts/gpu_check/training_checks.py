"""The checks of list A that call the policy directly: kernels, memory, precision, speed."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from check_models import (
    BACKBONES,
    CUDA,
    DEVICE,
    PROMPT,
    autocast,
    groups,
    optimizer,
    planned,
    policy,
    random_model,
    run_config,
    synchronize,
    update,
)
from check_report import Figure, Skip
from torch import nn

from grace_exp.data.prompts import Prompt
from grace_exp.policy.logprobs import token_logprobs
from grace_exp.policy.packing import TextSequence
from grace_exp.policy.policy import Policy
from grace_exp.rollout.protocol import Request
from grace_exp.rollout.transformers_engine import TransformersEngine
from grace_exp.rollout.vllm.memory import GIB
from grace_exp.training.plan.device_speed import device_speed
from grace_exp.training.plan.usage import Usage

WAYS: dict[str, dict[str, Any]] = {
    "plain rows": {"packing": False},
    "packed, dense mask": {"packing": True, "packed_attention": "mask", "share_head": False},
    "packed, block mask": {"packing": True, "packed_attention": "flex", "share_head": False},
}


def seconds(work: Callable[[], object]) -> float:
    """Return the seconds of one call, the GPU's work included."""
    synchronize()
    start = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - start


def packing_speed() -> list[Figure]:
    """Measure tokens per second of scoring and updates for each layout of rows, and list the attention kernels."""
    config, _ = planned(run_config(BACKBONES[0], "backbone.gradient_checkpointing=true"))
    model = random_model(BACKBONES[0], checkpointing=True)
    asked = groups(16 if CUDA else 2)
    tokens = sum(len(one.prompt.token_ids) + len(one.completion_ids) for one in asked)
    figures, scores = [], {}
    readers = {way: policy(model, config, **settings) for way, settings in WAYS.items()}
    for way, reader in readers.items():
        with autocast(CUDA):
            scores[way] = reader.score(asked).logprobs_NT
            took = seconds(partial(reader.score, asked))
        figures.append(Figure(f"score, {way}", tokens / took, "tokens/s"))
        if CUDA:
            figures.append(Figure(f"attention kernels, {way}", _kernels(reader, asked[:8])))
    for way, reader in readers.items():
        if CUDA or "block" not in way:  # FlexAttention has no backward on CPUs
            chosen = optimizer(reader, 1e-6)
            update(reader, chosen, asked, bf16=CUDA)
            took = seconds(partial(update, reader, chosen, asked, bf16=CUDA))
            figures.append(Figure(f"update, {way}", tokens / took, "tokens/s"))
            model.zero_grad()
    plain = scores["plain rows"]
    figures += [
        Figure(f"log-probs, {way}: mean difference to plain rows", _mean(found - plain), "nats", 0, 0.05)
        for way, found in scores.items()
        if way != "plain rows"
    ]
    return figures


def _mean(difference: torch.Tensor) -> float:
    return float(difference.abs().mean())


def _kernels(reader: Policy, asked: list[TextSequence]) -> str:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiled, autocast():
        reader.score(asked)
    words = ("flash", "fmha", "attention", "cudnn", "flex", "softmax")
    names = {event.key for event in profiled.key_averages() if any(word in event.key.lower() for word in words)}
    return ", ".join(sorted(name[:60] for name in names)[:6]) or "none by name"


def new_widths() -> list[Figure]:
    """Compare the first forward of a new row width with the second, with and without padding."""
    config = run_config(BACKBONES[0])
    model = random_model(BACKBONES[0])
    figures = []
    for pad_to in (1, 128):
        reader = policy(model, config, pad_to=pad_to, packing=False, score_tokens=1 << 20)
        reader.score(_of_length(64))
        first, second = [], []
        for length in range(200, 200 + 20 * 7, 7):
            for found in (first, second):
                with autocast(CUDA):
                    found.append(seconds(partial(reader.score, _of_length(length))))
        extra = 1000 * (sum(first) - sum(second)) / len(first)
        high = 5.0 if CUDA and pad_to == 128 else None
        figures.append(Figure(f"first over second forward of a width, padded to {pad_to}", extra, "ms", high=high))
    return figures


def _of_length(tokens: int) -> list[TextSequence]:
    return [TextSequence(Prompt(tuple(range(3, 3 + PROMPT)), 2), (5,) * tokens)]


def update_memory(backbone: str, *, checkpointing: bool) -> list[Figure]:
    """Make two full AdamW updates: peak memory against the plan, speed, MFU."""
    overrides = [f"backbone.gradient_checkpointing={str(checkpointing).lower()}", "rollout=transformers"]
    config, plan = planned(run_config(backbone, *overrides))
    memory = plan.memory
    apart = memory.phases["update"].get("context", 0)
    if CUDA and not memory.total("update") <= memory.usable:
        raise Skip(f"planned {memory.total('update') / GIB:.1f} GiB do not fit into {memory.usable / GIB:.1f}")
    reader = policy(random_model(backbone, checkpointing=checkpointing), config)
    chosen, usage = optimizer(reader, 1e-6), Usage(plan)
    asked = _filling(config.hardware.train_budget)
    tokens = sum(len(one.prompt.token_ids) + len(one.completion_ids) for one in asked)
    update(reader, chosen, asked, bf16=CUDA)
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    usage.step_metrics(reader, {})
    took = seconds(lambda: update(reader, chosen, asked, bf16=CUDA))
    found = usage.step_metrics(reader, {"time/update": took})
    figures = [
        Figure("tokens of a micro-batch", config.hardware.train_budget),
        Figure("update", tokens / took, "tokens/s"),
    ]
    if CUDA:
        peak = torch.cuda.max_memory_allocated()
        figures += [
            Figure("peak of tensors", peak / GIB, "GiB"),
            Figure("reserved", torch.cuda.max_memory_reserved() / GIB, "GiB", high=memory.usable / GIB),
            Figure("peak over plan", peak / (memory.total("update") - apart), "", 0.85, 1.15),
        ]
    if "perf/mfu" in found:
        figures.append(Figure("MFU of the update", found["perf/mfu"], "", low=0.15 if CUDA else None))
    return figures


def _filling(tokens: int) -> list[TextSequence]:
    """Return groups that fill two micro-batches."""
    found: list[TextSequence] = []
    held, seed = 0, 0
    while held < 2 * tokens:
        more = groups(1, seed=seed)
        found, seed = [*found, *more], seed + 1
        held += sum(len(one.prompt.token_ids) + len(one.completion_ids) for one in more)
    return found


def bf16_learns() -> list[Figure]:
    """Make twenty bf16 updates: float32 weights change, scores follow inside one autocast, and log-probs rise."""
    backbone, rate = BACKBONES[0], 1e-6 if CUDA else 1e-3
    config, _ = planned(run_config(backbone, "backbone.gradient_checkpointing=true"))
    reader = policy(random_model(backbone, checkpointing=True), config, train_tokens=4096)
    chosen, asked = optimizer(reader, rate), groups(2)
    before = {name: weight.detach().clone() for name, weight in reader.model.named_parameters()}
    means, stale, last = [], 0, None
    with autocast():
        for _ in range(20):
            means.append(update(reader, chosen, asked))
            scored = reader.score(asked[:2]).logprobs_NT
            stale += int(last is not None and torch.equal(scored, last))
            last = scored
    moved = total = rounded = 0
    for name, weight in reader.model.named_parameters():
        total += weight.numel()
        moved += int((weight != before[name]).sum())
        rounded += int((weight.bfloat16() != before[name].bfloat16()).sum())
    return [
        Figure("float32 weights that moved", moved / total, "", low=0.5),
        Figure("of them in bf16", rounded / total),
        Figure("scores that did not follow an update", stale, "", 0, 0),
        Figure("rise of the mean log-prob", means[-1] - means[0], "nats", low=1e-4),
    ]


def rounding() -> list[Figure]:
    """Compare log-probs of the same weights by two plans of micro-batches, and by a head that rounds to bf16."""
    config = run_config(BACKBONES[0])
    model = random_model(BACKBONES[0])
    with torch.no_grad():  # makes logits as large as those of trained models
        model.get_output_embeddings().weight.mul_(20 if CUDA else 5)
    asked = groups(2)
    with autocast():
        wide, narrow = (
            policy(model, config, packing=False, score_tokens=budget).score(asked).logprobs_NT
            for budget in (16384, 4096)
        )
        hidden = torch.randn(512, model.config.hidden_size, device=DEVICE)
        head, places = model.get_output_embeddings(), torch.arange(512, device=DEVICE)
        plain = nn.functional.linear(hidden, head.weight).float().log_softmax(-1)[places, places]
        ours = token_logprobs(hidden, places, torch.ones(512, device=DEVICE), head, chunk=256)
        low = hidden.bfloat16().double(), head.weight.bfloat16().double()
    exact = torch.cat([(part @ low[1].T).log_softmax(-1) for part in low[0].split(64)])[places, places]
    return [
        Figure("score plan against train plan, mean", _mean(wide - narrow), "nats", high=0.05),
        Figure("the same, at most", float((wide - narrow).abs().max()), "nats"),
        Figure("head in float32 against float64, at most", float((ours - exact).abs().max()), "nats", high=1e-3),
        Figure("a bf16 head against float64, mean", _mean(plain - exact), "nats"),
    ]


def gradient_storages() -> list[Figure]:
    """Check that under DDP gradients live in its buckets, also while they accumulate."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    if not dist.is_initialized():
        dist.init_process_group("nccl" if CUDA else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    figures = []
    for to_none in (True, False):
        model = DistributedDataParallel(random_model(BACKBONES[0], checkpointing=True), gradient_as_bucket_view=True)
        ids = torch.ones(1, 16, dtype=torch.long, device=DEVICE)
        model(input_ids=ids).logits.sum().backward()
        model.zero_grad(set_to_none=to_none)
        if CUDA:
            torch.cuda.reset_peak_memory_stats()
        with model.no_sync():
            model(input_ids=ids).logits.sum().backward()
        accumulating = _storages(model)
        model(input_ids=ids).logits.sum().backward()
        high = float(_storages(model)) if not to_none else None
        name = f"storages of gradients while they accumulate, set_to_none={to_none}"
        figures.append(Figure(name, accumulating, "", high=high))
        if CUDA:
            peak = torch.cuda.max_memory_allocated() / GIB
            figures.append(Figure(f"peak with set_to_none={to_none}", peak, "GiB"))
        del model
    dist.destroy_process_group()
    return figures


def _storages(model: nn.Module) -> int:
    """Return the number of memory blocks that hold the gradients."""
    return len({weight.grad.untyped_storage().data_ptr() for weight in model.parameters() if weight.grad is not None})


def transformers_decoding() -> list[Figure]:
    """Measure milliseconds per token of the transformers engine with 24 rows."""
    model = random_model(BACKBONES[0]).eval()
    engine = TransformersEngine(model, end_token_ids=(), pad_token_id=0, batch_tokens=1 << 20)
    tokens = 200 if CUDA else 20
    prompt = tuple(range(3, 3 + PROMPT))
    with autocast(CUDA):
        engine.generate([Request(prompt, 1, 4, 1.0, 0)])
        took = seconds(lambda: engine.generate([Request(prompt, 8, tokens, 1.0, seed) for seed in range(3)]))
    return [Figure("one token of 24 rows", 1000 * took / tokens, "ms", high=60.0 if CUDA else None)]


def known_device() -> list[Figure]:
    """Check that the device's peak figures are known, from which MFU and hours follow."""
    if not CUDA:
        raise Skip("no GPU: this is the script's own test, with the tiny model")
    config = run_config(BACKBONES[0])
    name, memory = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory / GIB
    speed = device_speed(config.hardware, memory, name)
    matrix = torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16)
    took = min(seconds(lambda: matrix @ matrix) for _ in range(20))
    reached = 2 * 8192**3 / took / 1e12
    share = [Figure("of the listed peak", reached / speed.tflops, "", 0.5, 1.1)] if speed is not None else []
    return [Figure("device", name), Figure("bf16 product of 8192 x 8192", reached, "TFLOP/s"), *share]
