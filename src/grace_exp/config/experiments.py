"""Names for pairs of backbone and experiment: `llama32_3b_contrastive` is `contrastive` with `backbone=llama32_3b`."""

from hydra.core.config_store import ConfigStore

BACKBONES = {
    "qwen": "qwen25_1_5b",
    "qwen25_3b": "qwen25_3b",
    "llama32_3b": "llama32_3b",
    "qwen3_4b": "qwen3_4b",
}
"""The paper's backbones: from the first part of an experiment's name to the choice of conf/backbone/."""
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
"""Experiments of conf/experiment/ that fit every backbone of the paper."""


def paired_experiments() -> dict[str, tuple[str, str]]:
    """From the name of a pair to its row and backbone, e.g. `qwen_sup` to `sup` and `qwen25_1_5b`."""
    return {f"{prefix}_{row}": (row, backbone) for prefix, backbone in BACKBONES.items() for row in ROWS}


def register_experiments() -> None:
    """Makes the names choices of Hydra's group `experiment`, beside the files of conf/experiment/."""
    store = ConfigStore.instance()
    for name, (row, backbone) in paired_experiments().items():
        node = {"defaults": [row, {"override /backbone": backbone}, "_self_"], "name": name}
        store.store(group="experiment", name=name, node=node, package="_global_", provider="grace_exp")
