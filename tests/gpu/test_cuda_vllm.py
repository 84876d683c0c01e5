"""VLLM's CUDA build beside a policy on one GPU: log-probs, syncs, sleep."""

import importlib.util
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from grace_exp.config.compose import compose_config
from grace_exp.config.vllm import VllmConfig
from grace_exp.jobs.train import train
from grace_exp.rollout.protocol import Completion, Request
from grace_exp.rollout.vllm.in_process import VllmEngine
from grace_exp.rollout.vllm.memory import GIB, available_bytes, device_overhead, model_shape, plan_memory

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM's CUDA build: make venv-gpu"),
]

MAX_MODEL_LEN = 160
LORA = "++backbone.lora.rank=4"
REQUESTS = [
    Request(tuple(range(3, 3 + length)), n, 12, temperature, seed)
    for seed, (length, n, temperature) in enumerate([(12, 4, 1.0), (100, 4, 1.0), (7, 1, 0.5), (140, 2, 0.0)])
]
TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 0.1}
"""Mean absolute difference, nats."""


@pytest.fixture(params=[torch.bfloat16, torch.float32], ids=["bf16", "float32"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def policy(request: pytest.FixtureRequest) -> PreTrainedModel:
    """Heads of width 64, which every attention kernel takes."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=1024,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=request.param,
        initializer_range=0.1,
    )
    return Qwen2ForCausalLM(config).eval().cuda()


@pytest.fixture
def engine(policy: PreTrainedModel, dtype: torch.dtype) -> Iterator[VllmEngine]:
    memory = plan_memory(
        model_shape(policy),
        value_bytes=dtype.itemsize,
        max_model_len=MAX_MODEL_LEN,
        max_sequences=64,
        available=available_bytes(torch.device("cuda", 0)),
        overhead=device_overhead("cuda", processes=1, eager=False),
        kv_cache=GIB,
    )
    made = VllmEngine(
        policy,
        VllmConfig(max_sequences=64),
        memory,
        end_token_ids=[2, *range(40, 100)],
        max_model_len=MAX_MODEL_LEN,
        dtype=dtype,
        device="cuda",
    )
    yield made
    made.close()


@torch.no_grad()
def difference(model: nn.Module, answers: list[list[Completion]]) -> float:
    """Mean absolute difference between the engine's log-probs and those of a plain forward in float32, nats."""
    found = []
    for request, answer in zip(REQUESTS, answers, strict=True):
        for completion in answer:
            ids = torch.tensor([[*request.prompt_ids, *completion.token_ids]], device="cuda")
            logits = model(input_ids=ids).logits[0, len(request.prompt_ids) - 1 : -1].double()
            own = (logits / (request.temperature or 1.0)).log_softmax(-1)
            own = own.gather(1, ids[0, len(request.prompt_ids) :, None])[:, 0].cpu()
            found.append((own - torch.tensor(completion.logprobs, dtype=torch.float64)).abs())
    return float(torch.cat(found).mean())


def update(model: nn.Module) -> None:
    """Five optimizer steps that change what is written."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    for _ in range(5):
        ids = torch.randint(3, 1000, (2, 20), device="cuda")
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def tokens(answers: list[list[Completion]]) -> list[list[tuple[int, ...]]]:
    return [[completion.token_ids for completion in answer] for answer in answers]


def test_syncs_and_sleep_on_cuda(engine: VllmEngine, policy: PreTrainedModel, dtype: torch.dtype) -> None:
    """The test uses one engine for everything, because an engine starts slowly."""
    before = engine.generate(REQUESTS)
    assert difference(policy, before) < TOLERANCE[dtype]
    update(policy)
    assert tokens(engine.generate(REQUESTS)) == tokens(before)  # not before the sync
    engine.sync(policy)
    after = engine.generate(REQUESTS)
    assert difference(policy, after) < TOLERANCE[dtype] and tokens(after) != tokens(before)

    awake = available_bytes(torch.device("cuda", 0))
    engine.sleep()
    assert available_bytes(torch.device("cuda", 0)) - awake > 0.9 * GIB  # its cache, at least
    update(policy)
    asleep = available_bytes(torch.device("cuda", 0))
    engine.sync(policy)
    assert available_bytes(torch.device("cuda", 0)) >= asleep - GIB // 10  # it sleeps on
    assert difference(policy, engine.generate(REQUESTS)) < TOLERANCE[dtype]

    free = []
    for _ in range(10):
        engine.sleep()
        engine.sync(policy)
        assert difference(policy, engine.generate(REQUESTS)) < TOLERANCE[dtype]
        free.append(available_bytes(torch.device("cuda", 0)))
    assert min(free[1:]) > free[0] - GIB // 4  # nothing piles up


@pytest.mark.parametrize("lora", [[], [LORA], [LORA, "rollout.vllm.lora=adapter"]])
def test_a_run_trains_with_vllm_on_cuda(tmp_path, lora: list[str]) -> None:
    settings = ["+experiment=demo_tiny", "hardware=gpu", "rollout.vllm.probe=true", "rollout.vllm.kv_cache_gib=1"]
    config = compose_config([*settings, *lora, "callbacks.progress=none"], tmp_path)
    assert (config.rollout.engine, config.objective.importance.mode) == ("vllm", "token")
    figures = train(config)
    assert figures["step"] == config.job.steps - 1
