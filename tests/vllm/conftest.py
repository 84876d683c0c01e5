"""Tests with vLLM's CPU build and the tiny model. Without vLLM none of them is collected."""

import importlib.util
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import grace_exp.openmp  # noqa: F401 - as `python -m grace_exp` does

# isort: split

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from grace_exp.config.vllm import VllmConfig
from grace_exp.rollout.protocol import Completion, Request, RolloutEngine
from grace_exp.rollout.vllm.in_process import VllmEngine
from grace_exp.rollout.vllm.memory import available_bytes, model_shape, plan_memory, weight_copies

if importlib.util.find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]

MAX_MODEL_LEN = 160
END_TOKENS = (2, *range(40, 100))
"""Many, so that random rationales end by themselves about half of the time."""
SETTINGS = VllmConfig(max_sequences=64)

Worst = Callable[[nn.Module, Sequence[Request], Sequence[Sequence[Completion]]], float]
Update = Callable[[nn.Module], None]


def make_engine(model: PreTrainedModel, settings: VllmConfig = SETTINGS) -> VllmEngine:
    memory = plan_memory(
        model_shape(model),
        value_bytes=4,
        max_model_len=MAX_MODEL_LEN,
        max_sequences=settings.max_sequences,
        available=available_bytes(torch.device("cpu")),
        copies=weight_copies("cpu"),
    )
    return VllmEngine(
        model,
        settings,
        memory,
        end_token_ids=END_TOKENS,
        max_model_len=MAX_MODEL_LEN,
        dtype=torch.float32,
        device="cpu",
    )


@pytest.fixture(scope="session")
def make() -> Callable[..., VllmEngine]:
    return make_engine


@pytest.fixture(scope="session")
def shared_engine(shared_model: PreTrainedModel) -> Iterator[VllmEngine]:
    """One engine for all tests of the session, because an engine starts slowly."""
    engine = make_engine(shared_model)
    yield engine
    engine.close()


@pytest.fixture
def engine(shared_engine: VllmEngine, shared_model: PreTrainedModel) -> VllmEngine:
    """The shared engine with the shared model's weights."""
    shared_engine.sync(shared_model)
    return shared_engine


@pytest.fixture
def requests() -> list[Request]:
    """What a step asks for in one call: groups at temperature 1, anchors at others, of prompts of mixed lengths."""
    draw = random.Random(7)
    wanted = ((12, 4, 1.0), (1, 4, 1.0), (100, 4, 1.0), (12, 1, 0.5), (140, 1, 2.0), (5, 2, 0.0))
    return [
        Request(tuple(draw.randrange(3, 1024) for _ in range(length)), n, 8 + seed, temperature, seed)
        for seed, (length, n, temperature) in enumerate(wanted)
    ]


@pytest.fixture
def with_adapters() -> Callable[[PreTrainedModel], PreTrainedModel]:
    """Puts adapters with weights other than zero on a model."""

    def adapt(model: PreTrainedModel) -> PreTrainedModel:
        from peft import LoraConfig, get_peft_model

        adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1, generator=generator)
        return adapted  # type: ignore[return-value]

    return adapt


@torch.no_grad()
def worst_difference(model: nn.Module, requests: Sequence[Request], answers: Sequence[Sequence[Completion]]) -> float:
    """The largest difference between an engine's log-probs and those of a plain forward, nats."""
    worst = 0.0
    for request, answer in zip(requests, answers, strict=True):
        assert len(answer) == request.n
        for completion in answer:
            assert 1 <= len(completion.token_ids) <= request.max_tokens
            logits = model(torch.tensor([[*request.prompt_ids, *completion.token_ids]])).logits[0].double()
            before = logits[len(request.prompt_ids) - 1 : -1] / (request.temperature or 1.0)
            own = before.log_softmax(-1).gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
            worst = max(worst, float((own - torch.tensor(completion.logprobs, dtype=torch.float64)).abs().max()))
    return worst


@pytest.fixture
def worst() -> Worst:
    return worst_difference


@pytest.fixture
def five_updates() -> Update:
    """Five optimizer steps that change what is written."""

    def update(model: nn.Module) -> None:
        generator = torch.Generator().manual_seed(0)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        for _ in range(5):
            ids = torch.randint(3, 1000, (2, 20), generator=generator)
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return update


class Kept:
    """The session's engine, for a run that would close it."""

    def __init__(self, engine: RolloutEngine) -> None:
        self.generate = engine.generate
        self.sync = engine.sync
        self.sleep = engine.sleep

    def close(self) -> None:
        pass


@pytest.fixture
def reward_of_run(
    shared_engine: VllmEngine, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, int], list[float]]:
    """Trains the tiny model with the engine `transformers` or `vllm`; the mean reward of every step."""
    import csv

    from grace_exp.config.compose import compose_config
    from grace_exp.jobs import assemble
    from grace_exp.jobs.train import train

    build, cache = assemble.build_engine, tmp_path_factory.mktemp("cache")

    def run(engine: str, seed: int) -> list[float]:
        folder: Path = tmp_path_factory.mktemp("run")
        config = compose_config(
            [
                "+experiment=demo_tiny",
                f"rollout={engine}",
                f"seed={seed}",
                f"cache_dir={cache}",
                "callbacks.progress=none",
                "callbacks.export=[]",
                "logger.samples_every_n_steps=0",
            ],
            folder,
        )

        def choose(config: object, backbone: object, **_: object) -> RolloutEngine:
            if engine == "transformers":
                return build(config, backbone)  # type: ignore[arg-type]
            shared_engine.sync(backbone.model)  # type: ignore[attr-defined]
            monkeypatch.setattr(shared_engine, "_end_token_ids", backbone.end_token_ids)  # type: ignore[attr-defined]
            return Kept(shared_engine)

        monkeypatch.setattr(assemble, "build_engine", choose)
        train(config)
        with (folder / "metrics.csv").open() as file:
            return [float(row["reward/total/mean"]) for row in csv.DictReader(file)]

    return run
