"""Time of log-probs and embeddings: full logits over padded rows against one packed forward (4 minutes on 2 cores).

python benchmarks/forward.py
"""

import argparse

import torch
from common import compare, demo_config, prompts, smollm2

from grace_exp.config.hardware import HardwareConfig
from grace_exp.policy.packing import TextSequence
from grace_exp.policy.policy import Policy

K, TOKENS, PROMPTS = 8, 16, 4


def main() -> None:
    """Compare forward, and forward with backward, for one update of the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="paired runs")
    options = parser.parse_args()
    config = demo_config()
    backbone = smollm2(config, lora=True)
    generator = torch.Generator().manual_seed(0)
    sequences = [
        TextSequence(prompt, tuple(torch.randint(100, 40000, (TOKENS,), generator=generator).tolist()))
        for prompt in prompts(backbone, config, PROMPTS)
        for _ in range(K)
    ]
    model = backbone.model
    hardware = HardwareConfig(name="benchmark")

    def policy(*, packing: bool) -> Policy:
        changed = HardwareConfig(name="benchmark", packing=packing, score_tokens=hardware.score_tokens)
        return Policy(model, config.backbone.pooling, changed, pad_token_id=backbone.pad_token_id)

    packed, padded = policy(packing=True), policy(packing=False)
    everything = list(range(len(sequences)))

    def full_logits(backward: bool) -> None:
        batch = padded.collate(sequences, everything)
        mask = (batch.block_BL >= 0).long()
        output = model(input_ids=batch.input_ids_BL, attention_mask=mask, output_hidden_states=True, use_cache=False)
        logprobs = output.logits[:, :-1].log_softmax(-1).gather(2, batch.input_ids_BL[:, 1:, None])
        if backward:
            logprobs.mean().backward()

    def ours(chosen: Policy, backward: bool) -> None:
        _, logprobs, _ = chosen(chosen.collate(sequences, everything), (config.backbone.pooling.region,))
        if backward:
            logprobs.mean().backward()

    model.train()
    for backward in (False, True):
        with torch.set_grad_enabled(backward):
            compare(
                f"{PROMPTS} prompts x {K} rationales x {TOKENS} tokens, forward{' and backward' if backward else ''}",
                {
                    "padded, full logits (transformers)": lambda b=backward: full_logits(b),
                    "padded, chunked log-probs": lambda b=backward: ours(padded, b),
                    "packed, chunked log-probs": lambda b=backward: ours(packed, b),
                },
                repeats=options.repeats,
            )


if __name__ == "__main__":
    main()
