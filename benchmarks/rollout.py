"""Writing rationales: transformers' `generate`, our engine on it, and vLLM where it is installed; SmolLM2, LoRA, K = 8.

python benchmarks/rollout.py                (4 minutes on 2 cores)
python benchmarks/rollout.py --tokens 64    (15 minutes; the README's figures)
"""

import argparse
import importlib.util
from collections.abc import Callable
from contextlib import ExitStack, closing

import torch
from common import compare, demo_config, prompts, smollm2
from torch.nn.utils.rnn import pad_sequence

from grace_exp.policy.backbone import Backbone
from grace_exp.rollout.protocol import Request, RolloutEngine
from grace_exp.rollout.transformers_engine import TransformersEngine

K, PROMPTS = 8, 4


def main() -> None:
    """Compare ways to the same number of tokens, and to new weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16, help="of every rationale")
    parser.add_argument("--repeats", type=int, default=5, help="paired runs")
    parser.add_argument("--engines-only", action="store_true", help="leave transformers' own generate out")
    options = parser.parse_args()
    with ExitStack() as engines:
        _compare(options, engines)


def _compare(options: argparse.Namespace, engines: ExitStack) -> None:
    tokens = options.tokens
    config = demo_config()
    backbone = smollm2(config, lora=True)
    chosen = prompts(backbone, config, PROMPTS)
    model, pad = backbone.model, backbone.pad_token_id
    # No end tokens: every way writes the same number.
    engine = TransformersEngine(model, end_token_ids=(), pad_token_id=pad, batch_tokens=config.rollout.batch_tokens)
    requests = [Request(prompt.token_ids, K, tokens, 1.0, seed) for seed, prompt in enumerate(chosen)]

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

    def one_thread_group() -> object:
        # Both cores on every product, prompts read once, adapters folded in: the engine without its division of work.
        with torch.no_grad():
            return engine._write(engine._writer(), requests, range(len(requests)))

    ways: dict[str, Callable[[], object]] = {"engine": lambda: engine.generate(requests)}
    if not options.engines_only:
        ways = {"transformers generate": generate, "engine, cores together": one_thread_group} | ways
    syncs: dict[str, Callable[[], object]] = {"engine": lambda: engine.sync(model)}
    if importlib.util.find_spec("vllm") is not None:
        vllm = engines.enter_context(closing(_vllm(backbone, max(len(prompt.token_ids) for prompt in chosen) + tokens)))
        ways["vLLM"] = lambda: vllm.generate(requests)
        syncs["vLLM"] = lambda: vllm.sync(model)
    written = PROMPTS * K * tokens
    compare(f"{PROMPTS} prompts x {K} rationales x {tokens} tokens = {written}", ways, repeats=options.repeats)
    compare("taking over new weights", syncs, repeats=options.repeats)


def _vllm(backbone: Backbone, longest: int) -> RolloutEngine:
    from grace_exp.config.vllm import VllmConfig
    from grace_exp.rollout.vllm_engine import VllmEngine
    from grace_exp.rollout.vllm_memory import available_bytes, model_shape, plan_memory

    cpu, settings = torch.device("cpu"), VllmConfig(max_sequences=64)
    memory = plan_memory(
        model_shape(backbone.model),
        value_bytes=4,
        max_model_len=longest,
        max_sequences=settings.max_sequences,
        available=available_bytes(cpu),
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
