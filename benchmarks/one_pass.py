"""Time of embeddings from the hidden states of writing against a second forward: SmolLM2, rationales of 32 tokens.

    python benchmarks/one_pass.py                            # some 3 minutes on 2 quiet cores
    python benchmarks/one_pass.py --texts 24 --repeats 2     # one minute

Both ways encode the same WordNet glosses greedily, without a cache, in turns. The engines are transformers and, if it
is installed, vLLM. The script prints a table of medians for each engine, with the largest difference of an embedding.
It writes benchmarks/results/one_pass.json.
"""

import argparse
import importlib.util
from contextlib import closing
from typing import Any

import paired
from common import demo_config, smollm2
from paired import Cost

from grace_exp.config.backbone import PoolingConfig
from grace_exp.config.hardware import HardwareConfig
from grace_exp.data.wordnet import load_wordnet
from grace_exp.encoder.encoder import GraceEncoder
from grace_exp.encoder.engines import engine_maker
from grace_exp.policy.policy import Policy

TOKENS = 32
ENGINES = ["transformers", *(["vllm"] if importlib.util.find_spec("vllm") is not None else [])]


def main() -> None:
    """Compare the two ways with every engine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3, help="pairs")
    parser.add_argument("--engine", choices=ENGINES, help="only this one")
    options = parser.parse_args()
    texts = [row["positive"] for row in load_wordnet("train")[: options.texts]]
    engines = [options.engine] if options.engine else ENGINES
    results = paired.earlier("one_pass").get("engines", {})
    for name in engines:
        results[name] = {"texts": len(texts), **measure(name, texts, options.repeats)}
    paired.write("one_pass", {"rationale_tokens": TOKENS, "engines": results})


def measure(engine: str, texts: list[str], repeats: int) -> dict[str, Any]:
    """Measure one engine: its table, and the largest difference between embeddings."""
    import numpy as np

    config = demo_config()
    backbone = smollm2(config, lora=False)
    engine_of_model = engine_maker(engine, [])(backbone, config.prompt.max_tokens, TOKENS)
    with closing(engine_of_model) as writer:

        def encoder(one_pass: bool) -> GraceEncoder:
            settings = HardwareConfig(name="cpu", share_head=True, score_tokens=4096, one_pass=one_pass)
            policy = Policy(backbone.model, PoolingConfig(), settings, pad_token_id=backbone.pad_token_id).eval()
            return GraceEncoder(backbone, policy=policy, engine=writer, prompt=config.prompt, max_tokens=TOKENS)

        def encode(way: GraceEncoder, count: int) -> tuple[Cost, Any]:
            """Return vectors of the first texts. vLLM's prefix cache is emptied first, so that ways do not share it."""
            writer.sync(backbone.model)
            found: list[Any] = []
            return paired.in_process(lambda: found.append(way.encode(texts[:count])))(), found[0]

        two, one = encoder(False), encoder(True)
        vectors = [np.asarray(encode(way, 8)[1]) for way in (two, one)]  # the first use compares, too
        distances = np.linalg.norm(vectors[0] - vectors[1], axis=1) / np.linalg.norm(vectors[0], axis=1)
        ways = {
            "two passes": lambda: encode(two, len(texts))[0],
            "one pass": lambda: encode(one, len(texts))[0],
        }
        found = paired.summary(paired.take_turns(ways, repeats, warm_up=False))
    paired.show(f"{engine}: {len(texts)} texts, rationales of {TOKENS} tokens", found)
    print(f"largest difference of an embedding, as a share of its length: {distances.max():.1e}")
    return {"ways": found, "largest_difference": float(distances.max())}


if __name__ == "__main__":
    main()
