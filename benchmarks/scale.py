"""CPU seconds of the parts whose cost grows with the corpus or the batch and not with the model; one thread.

docs/scale.md and `job=plan` compute their figures for millions and billions of texts from these.

python benchmarks/scale.py              (2 minutes of CPU)
"""

import argparse
import json
import platform
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import common  # noqa: F401 - first of all: it looks at OpenMP, as `python -m grace_exp` does
from rich.console import Console
from rich.table import Table

RESULT = Path(__file__).parent / "results" / "scale.json"
HIDDEN = 1536
"""Of Qwen2.5-1.5B."""


def main() -> None:
    """Measure every piece, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=100_000, help="of the corpus that is measured")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="grace-exp-scale-") as folder:
        found |= _corpus(Path(folder), options.texts)
        found |= _cache(Path(folder), options.texts // 5)
        found |= _shards(Path(folder), options.texts // 10)
    found |= _schedule(10 * options.texts)
    found |= _reward()
    table = Table(title="CPU seconds of one thread, unless the name says another unit", title_justify="left")
    table.add_column("piece")
    table.add_column("figure", justify="right")
    for name, value in found.items():
        table.add_row(name, f"{value:.4g}")
    Console(width=120).print(table)
    record = {"command": "python benchmarks/scale.py", "machine": platform.processor() or platform.machine()}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(record | {"texts": options.texts, "figures": found}, indent=2) + "\n")


def _seconds(work: Callable[[], object]) -> float:
    """Return the CPU seconds of this process, the least of three."""
    times = []
    for _ in range(3):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def _corpus(folder: Path, texts: int) -> dict[str, float]:
    """Measure reading and checking rows, with and without ids, and the memory of the ids."""
    from grace_exp.data.corpus_rows import CorpusRows
    from grace_exp.data.wordnet import load_wordnet

    glosses = [str(row["positive"]) for row in load_wordnet("train")]
    path = folder / "corpus.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for row in range(texts):
            file.write(json.dumps({"id": f"d{row}", "text": f"{glosses[row % len(glosses)]} ({row})"}) + "\n")
    plain = CorpusRows(str(path), "text", None, False, folder / "cache")
    named = CorpusRows(str(path), "text", "id", False, folder / "cache")
    found = {
        "corpus: reading and checking, a million rows": _seconds(lambda: plain.check(None)) * 1e6 / texts,
        "corpus: the same with an id column": _seconds(lambda: named.check(None)) * 1e6 / texts,
    }
    tracemalloc.start()
    ids = {f"d{row}" for row in range(texts)}
    found["corpus: memory of a million ids, MB"] = tracemalloc.get_traced_memory()[0] / len(ids)
    tracemalloc.stop()
    return found


def _cache(folder: Path, entries: int) -> dict[str, float]:
    """Measure the cache: a rationale of 500 tokens and an embedding per text, 256 texts per transaction."""
    from grace_exp.encoder.cache import RationaleCache

    value = bytes(4 * 500) + bytes(4 * HIDDEN)
    keys = [row.to_bytes(8) * 4 for row in range(entries)]
    cache = RationaleCache(folder / "sqlite")

    def put() -> None:
        for start in range(0, entries, 256):
            cache.put(dict.fromkeys(keys[start : start + 256], value))

    def get() -> None:
        for start in range(0, entries, 256):
            cache.get(keys[start : start + 256])

    start = time.perf_counter()
    put()
    wall = time.perf_counter() - start
    found = {
        "cache: putting a million texts": _seconds(put) * 1e6 / entries,
        "cache: the same, wall time of one process": wall * 1e6 / entries,
        "cache: finding a million texts": _seconds(get) * 1e6 / entries,
    }
    cache.close()
    return found


def _shards(folder: Path, rows: int) -> dict[str, float]:
    """Measure writing vectors, texts and rationales."""
    import numpy as np

    from grace_exp.data.corpus_rows import CorpusRow
    from grace_exp.encoder.shards import Shards

    shards = Shards(folder / "v.parquet", {"of": "benchmark"}, sharded=True)
    texts = [CorpusRow(row, "a text of some words that stands for others " * 3) for row in range(rows)]
    rationales = ["a rationale of some words that stands for others " * 40] * rows
    vectors = np.random.default_rng(0).standard_normal((rows, HIDDEN), dtype=np.float32)
    found = {
        "shards: writing a million texts": _seconds(lambda: shards.write(0, texts, vectors, rationales)) * 1e6 / rows
    }
    size = sum(path.stat().st_size for path in folder.glob("v-*"))
    return found | {"shards: bytes of a text, KB": size / rows / 1e3}


def _schedule(draws: int) -> dict[str, float]:
    """Measure the schedule: every process draws all steps of a run at the start."""
    from grace_exp.data.schedule import Schedule, SourceShare

    source = [SourceShare("all", draws, 1.0)]
    build = lambda: Schedule(source, seed=0, batch_size=64, steps=draws // 64)  # noqa: E731
    tracemalloc.start()
    build()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        "schedule: a million draws": _seconds(build) * 1e6 / draws,
        "schedule: memory of a million draws while it is made, MB": peak / draws,
    }


def _reward() -> dict[str, float]:
    """Measure the reward of all groups. Every process computes it, and it grows with the square of the batch."""
    import torch

    from grace_exp.config.compose import compose_config
    from grace_exp.reward import RewardInputs, compose_reward

    config = compose_config(["+experiment=demo", "reward=paper_supervised"], Path("runs/benchmark")).reward
    generator = torch.Generator().manual_seed(0)
    found = {}
    for groups in (64, 256, 1024):
        vectors = [torch.randn(groups, n, HIDDEN, generator=generator) for n in (8, 1, 1)]

        def compute(groups: int = groups, vectors: list[torch.Tensor] = vectors) -> None:
            inputs = RewardInputs(
                *vectors,
                truncated_GK=torch.zeros(groups, 8, dtype=torch.bool),
                lengths_GK=torch.ones(groups, 8, dtype=torch.long),
                text_keys_GX=torch.arange(3 * groups).view(groups, 3),
                max_tokens=2048,
            )
            compose_reward(inputs, config)

        found[f"reward: {groups} groups, K = 8, hidden {HIDDEN}"] = _seconds(compute)
    return found


if __name__ == "__main__":
    main()
