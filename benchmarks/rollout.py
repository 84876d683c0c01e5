"""Speed of writing rationales: transformers' `generate`, our engine, and vLLM if installed; SmolLM2, LoRA, K = 8.

Every engine has a process of its own, as in a run, because sleeping threads of one engine slow down those of another.
The processes take turns.

python benchmarks/rollout.py                (8 minutes on 2 cores)
python benchmarks/rollout.py --tokens 64    (25 minutes; with --engines-only the README's figures in 7 minutes)
"""

import argparse
import importlib.util
import multiprocessing
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from multiprocessing.connection import Connection

import torch
from common import compare, demo_config, prompts, smollm2
from torch.nn.utils.rnn import pad_sequence

from grace_exp.policy.load_backbone import Backbone
from grace_exp.rollout.protocol import Request, RolloutEngine
from grace_exp.rollout.transformers_engine import TransformersEngine

K = 8
GENERATE, TOGETHER, ENGINE, VLLM = "transformers generate", "engine, cores together", "engine", "vLLM"


def main() -> None:
    """Compare the time of writing the same number of tokens, and of loading new weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16, help="of every rationale")
    parser.add_argument("--prompts", type=int, default=8, help="as many as the demo's batch has")
    parser.add_argument("--repeats", type=int, default=5, help="paired runs")
    parser.add_argument("--engines-only", action="store_true", help="leave transformers' own generate out")
    options = parser.parse_args()
    names = [ENGINE] if options.engines_only else [GENERATE, TOGETHER, ENGINE]
    if importlib.util.find_spec("vllm") is not None:
        names.append(VLLM)
    context = multiprocessing.get_context("spawn")
    ways = {}
    for name in names:
        ways[name], theirs = context.Pipe()
        context.Process(target=_serve, args=(name, options.prompts, options.tokens, theirs), daemon=True).start()
        ways[name].recv()
    written = options.prompts * K * options.tokens
    title = f"{options.prompts} prompts x {K} rationales x {options.tokens} tokens = {written}"
    compare(title, {name: partial(_ask, way, "write") for name, way in ways.items()}, repeats=options.repeats)
    engines = {name: partial(_ask, way, "sync") for name, way in ways.items() if name in (ENGINE, VLLM)}
    compare("taking over new weights", engines, repeats=options.repeats)
    for way in ways.values():
        _ask(way, "end")


def _ask(way: Connection, what: str) -> None:
    way.send(what)
    way.recv()


def _serve(name: str, count: int, tokens: int, pipe: Connection) -> None:
    """Serve one way: run each request and answer when it is done."""
    with ExitStack() as engines:
        write, sync = _way(name, count, tokens, engines)
        sync()
        pipe.send("ready")
        while (what := pipe.recv()) != "end":
            write() if what == "write" else sync()
            pipe.send("done")
    pipe.send("ended")


def _way(name: str, count: int, tokens: int, engines: ExitStack) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return the functions that write rationales and that load new weights."""
    config = demo_config()
    backbone = smollm2(config, lora=True)
    chosen = prompts(backbone, config, count)
    model, pad = backbone.model, backbone.pad_token_id
    requests = [Request(prompt.token_ids, K, tokens, 1.0, seed) for seed, prompt in enumerate(chosen)]
    if name == VLLM:
        vllm = engines.enter_context(closing(_vllm(backbone, max(len(prompt.token_ids) for prompt in chosen) + tokens)))
        return lambda: vllm.generate(requests), lambda: vllm.sync(model)
    # Without end tokens every way writes the same number of tokens.
    engine = TransformersEngine(model, end_token_ids=(), pad_token_id=pad, batch_tokens=config.rollout.batch_tokens)
    if name == ENGINE:
        return lambda: engine.generate(requests), lambda: engine.sync(model)

    def one_thread_group() -> object:
        # The engine without its own division of work: both cores compute every product, prompts are read once.
        with torch.no_grad():
            return engine._write(engine._writer(), requests, range(len(requests)))

    ids = [torch.tensor(prompt.token_ids).flip(0) for prompt in chosen]
    padded = pad_sequence(ids, batch_first=True, padding_value=pad).flip(1)
    mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True).flip(1)

    def generate() -> object:
        return model.generate(
            inputs=padded,
            attention_mask=mask,
            num_return_sequences=K,
            do_sample=True,
            top_k=0,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            pad_token_id=pad,
        )

    return (generate if name == GENERATE else one_thread_group), lambda: engine.sync(model)


def _vllm(backbone: Backbone, longest: int) -> RolloutEngine:
    from grace_exp.config.vllm import VllmConfig
    from grace_exp.rollout.vllm.in_process import VllmEngine
    from grace_exp.rollout.vllm.memory import available_bytes, model_shape, plan_memory, weight_copies

    cpu, settings = torch.device("cpu"), VllmConfig(max_sequences=64)
    memory = plan_memory(
        model_shape(backbone.model),
        value_bytes=4,
        max_model_len=longest,
        max_sequences=settings.max_sequences,
        available=available_bytes(cpu),
        copies=weight_copies("cpu"),
    )
    return VllmEngine(
        backbone.model,
        settings,
        memory,
        end_token_ids=(),
        max_model_len=longest,
        dtype=torch.float32,
        device="cpu",
    )


if __name__ == "__main__":
    main()
