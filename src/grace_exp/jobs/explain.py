"""Explain similarities: which words of two texts and their rationales make up a cosine."""

from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path

from grace_exp.config.data import DataConfig, SourceConfig
from grace_exp.config.root import GraceConfig
from grace_exp.data.sources import load_source
from grace_exp.jobs.processes import processes
from grace_exp.jobs.run_encoder import build_encoder
from grace_exp.jobs.terminal import our_console
from grace_exp.review.explanation_page import PAGE_FILE, print_explanation, write_page
from grace_exp.tracking.summary import write_json_atomic

JSON_FILE = "explanation.json"
"""File in the run folder with the same numbers as the page."""


def explain(config: GraceConfig) -> dict[str, float]:
    """Explain the pair `job.text_a`, `job.text_b`, or every pair of `job.pairs`.

    Writes `<run_dir>/explanation.html` and `explanation.json`, and prints every pair.

    Returns:
        `explain/pairs` and `explain/largest_residual`: the largest difference between a cosine and the sum of its
        contributions.

    Raises:
        ConfigError: The model's pooling is not a mean.
        DataError: `job.pairs` does not exist, or a row of it lacks a text.
        MissingResourceError: The model does not exist.
    """
    pairs = _pairs(config)
    encode = config.job.encode
    with ExitStack() as stack:
        device = stack.enter_context(processes(config.hardware))
        console = our_console()
        encoder = stack.enter_context(closing(build_encoder(config, device)))
        explanations = []
        for a, b in pairs:
            explanation = encoder.explain(
                a, b, mode=encode.mode, max_tokens=encode.max_tokens, temperature=encode.temperature, seed=config.seed
            )
            explanations.append(explanation)
            print_explanation(console, explanation)
        folder = Path(config.run_dir)
        write_page(folder / PAGE_FILE, explanations, encoder.name)
        write_json_atomic(
            folder / JSON_FILE, {"model": encoder.name, "pairs": [asdict(explanation) for explanation in explanations]}
        )
        console.print(f"Page: {folder / PAGE_FILE}", highlight=False, soft_wrap=True, markup=False)
    residual = max(abs(explanation.cosine - explanation.total) for explanation in explanations)
    return {"explain/pairs": float(len(pairs)), "explain/largest_residual": residual}


def _pairs(config: GraceConfig) -> list[tuple[str, str]]:
    job = config.job
    if job.pairs is None:
        assert job.text_a is not None and job.text_b is not None  # checked by JobConfig
        return [(job.text_a, job.text_b)]
    source = SourceConfig(path=job.pairs, query="text_a", positive="text_b", negative=None)
    data = DataConfig(name="explain", mode="supervised", negatives=0, sources={"pairs": source})
    rows = load_source("pairs", source, data, None, Path(config.cache_dir)).rows
    return list(zip(rows["query"], rows["positive"], strict=True))
