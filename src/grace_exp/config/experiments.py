"""Names of experiment and backbone in one: `llama32_3b_contrastive` is `contrastive` with `backbone=llama32_3b`."""

from hydra.core.config_store import ConfigStore

BACKBONES = {
    "qwen": "qwen25_1_5b",
    "qwen25_3b": "qwen25_3b",
    "llama32_3b": "llama32_3b",
    "qwen3_4b": "qwen3_4b",
}
"""The paper's backbones: the choice of conf/backbone/ by the first part of an experiment's name."""
ROWS = (
    "sup",
    "unsup",
    "exact_sup",
    "exact_unsup",
    "base",
    "reasoning",
    "contrastive",
    "contrastive_on_rationales",
    "rejection_sft",
    "simcse",
)
"""Experiments of conf/experiment/ that can be combined with every backbone of the paper."""


def paired_experiments() -> dict[str, tuple[str, str]]:
    """Return the experiment and backbone of each combined name, e.g. `sup` and `qwen25_1_5b` for `qwen_sup`."""
    return {f"{prefix}_{row}": (row, backbone) for prefix, backbone in BACKBONES.items() for row in ROWS}


def register_experiments() -> None:
    """Add the combined names to Hydra's group `experiment`, beside the files of conf/experiment/."""
    store = ConfigStore.instance()
    for name, (row, backbone) in paired_experiments().items():
        node = {"defaults": [row, {"override /backbone": backbone}, "_self_"], "name": name}
        store.store(group="experiment", name=name, node=node, package="_global_", provider="grace_exp")
