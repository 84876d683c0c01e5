"""What the benchmarks share: the demo's model and texts, and paired timing."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import grace_exp.openmp  # noqa: F401 - as `python -m grace_exp` does

# isort: split

from rich.console import Console
from rich.table import Table

from grace_exp.config.backbone import BackboneConfig, LoraConfig
from grace_exp.config.compose import compose_config
from grace_exp.config.root import GraceConfig
from grace_exp.data.batch import Role
from grace_exp.data.prompts import Prompt, PromptBuilder
from grace_exp.data.wordnet import load_wordnet
from grace_exp.policy.load_backbone import Backbone, load_backbone


def demo_config() -> GraceConfig:
    """The demo's settings."""
    return compose_config(["+experiment=demo_paper"], Path("runs/benchmark"))


def smollm2(config: GraceConfig, *, lora: bool) -> Backbone:
    """SmolLM2-135M-Instruct in float32, with or without adapters whose weights are not zero."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    backbone = BackboneConfig(name="smollm2", source="embedded", lora=LoraConfig() if lora else None)
    loaded = load_backbone(backbone, cache_dir=Path(config.cache_dir), seed=0, dtype=torch.float32)
    if lora:
        with torch.no_grad():
            for name, parameter in loaded.model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.01)
    return loaded


def prompts(backbone: Backbone, config: GraceConfig, count: int) -> list[Prompt]:
    """WordNet glosses in prompts with the demo's system prompt."""
    texts = [row["positive"] for row in load_wordnet("train")[:count]]
    return PromptBuilder(backbone.tokenizer, config.prompt).many((Role.POSITIVE, text) for text in texts)


def compare(title: str, ways: dict[str, Callable[[], object]], *, repeats: int) -> None:
    """Run every way in turn, `repeats` times after a warm-up. Print seconds, and ratios of pairs to the first way."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(repeats + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if round_number:
                seconds[name].append(time.perf_counter() - start)
    table = Table(title=title, title_justify="left")
    for column in ("way", "median s", "min", "max", "first / this (median of pairs)"):
        table.add_column(column, justify="left" if column == "way" else "right")
    first = next(iter(seconds.values()))
    for name, times in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(first, times, strict=True))
        table.add_row(name, f"{statistics.median(times):.2f}", f"{min(times):.2f}", f"{max(times):.2f}", f"{ratio:.2f}")
    Console(width=120).print(table)
