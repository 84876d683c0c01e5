"""Writing rationales: transformers' `generate` against the engine, SmolLM2, LoRA, K = 8 (4 minutes on 2 cores).

python benchmarks/rollout.py
"""

import torch
from common import compare, demo_config, prompts, smollm2
from torch.nn.utils.rnn import pad_sequence

from grace_exp.rollout.protocol import Request
from grace_exp.rollout.transformers_engine import TransformersEngine

K, TOKENS, PROMPTS = 8, 16, 4


def main() -> None:
    """Compare four ways to the same number of tokens."""
    config = demo_config()
    backbone = smollm2(config, lora=True)
    chosen = prompts(backbone, config, PROMPTS)
    model, pad = backbone.model, backbone.pad_token_id
    engine = TransformersEngine(
        model, end_token_ids=backbone.end_token_ids, pad_token_id=pad, batch_tokens=config.rollout.batch_tokens
    )
    requests = [Request(prompt.token_ids, K, TOKENS, 1.0, seed) for seed, prompt in enumerate(chosen)]

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
            max_new_tokens=TOKENS,
            min_new_tokens=TOKENS,
            pad_token_id=pad,
        )

    def one_thread_group() -> object:
        # Both cores on every product, prompts read once, adapters folded in: the engine without its division of work.
        with torch.no_grad():
            return engine._write(engine._writer(), requests, range(len(requests)))

    compare(
        f"{PROMPTS} prompts x {K} rationales x {TOKENS} tokens",
        {
            "transformers generate": generate,
            "engine, cores together": one_thread_group,
            "engine": lambda: engine.generate(requests),
        },
        repeats=5,
    )
    compare("taking over new weights", {"sync": lambda: engine.sync(model)}, repeats=5)


if __name__ == "__main__":
    main()
