"""Write the table of docs/plan.md: the memory of the paper's backbones on GPUs of 24 to 141 GB.

The figures come from the code that plans a run (`grace_exp.training.plan`). No GPU, hub or model is needed.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from grace_exp.config.compose import compose_config
from grace_exp.rollout.vllm.memory import GIB
from grace_exp.training.plan.device_memory import DeviceMemory, device_memory
from grace_exp.training.plan.dimensions import planned_dimensions
from grace_exp.training.plan.plan_settings import plan_settings

PAGE = Path(__file__).resolve().parents[1] / "docs" / "plan.md"
BEGIN, END = "<!-- table: scripts/plan_table.py -->", "<!-- end of table -->"
BACKBONES = ("qwen25_1_5b", "qwen25_3b", "llama32_3b", "qwen3_4b")
MEMORY = (24, 48, 80, 141)
LORA = "backbone.lora={rank: 16, alpha: 32}"


def lines() -> Iterator[str]:
    """Return the table's lines."""
    yield f"| backbone | training | strategy | {' | '.join(f'{size} GB' for size in MEMORY)} |"
    yield f"|---|---|---|{'---|' * len(MEMORY)}"
    for backbone in BACKBONES:
        for training, overrides in (("all weights", ()), ("LoRA", (LORA,))):
            config = compose_config(
                ["+experiment=qwen_sup", f"backbone={backbone}", "backbone.gradient_checkpointing=true", *overrides],
                Path("run"),
            )
            dimensions = planned_dimensions(config.backbone)
            for strategy in ("ddp", "fsdp2"):
                cells = []
                for size in MEMORY:
                    settings = replace(plan_settings(config, dimensions, size * GIB), strategy=strategy)
                    cells.append(cell(device_memory(settings)))
                yield f"| {backbone} | {training} | {strategy} | {' | '.join(cells)} |"


def cell(memory: DeviceMemory) -> str:
    """Return one plan: GiB of rollout and update, tokens of a micro-batch, cached sequences."""
    rollout, update = (f"{memory.total(phase) / GIB:.1f}" for phase in ("rollout", "update"))
    if memory.problem is not None:
        return f"**no**: no room for the engine beside the policy (update {update})"
    if not memory.fits:
        return f"**no**: {rollout} / {update}"
    return f"{rollout} / {update}, {memory.train_tokens // 1024}k, {memory.cached_sequences}"


def page(text: str) -> str:
    """Return the page with a new table."""
    before, rest = text.split(BEGIN)
    return "\n".join([before + BEGIN, "", *lines(), "", END + rest.split(END)[1]])


if __name__ == "__main__":
    written = page(PAGE.read_text(encoding="utf-8"))
    if "--check" in sys.argv:
        sys.exit(written != PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(written, encoding="utf-8")
