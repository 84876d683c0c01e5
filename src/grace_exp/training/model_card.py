"""The README of an exported model, with the front matter that hubs read."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from grace_exp.config.install import clone_command
from grace_exp.config.root import GraceConfig
from grace_exp.encoder.pretrained import SETTINGS_FILE

_LICENSES = {"HuggingFaceTB/SmolLM2-135M-Instruct": "apache-2.0", "Qwen/Qwen2.5-1.5B-Instruct": "apache-2.0"}
"""Licences of known base models; other licences are not guessed."""
_TASKS = {"sts": ("sentence-similarity", "Spearman of cosines x 100"), "retrieval": ("retrieval", "nDCG@10 x 100")}
_TIME = "ms per text"
"""Heading of the last column of a table."""

_METHODS = {
    "grace": "GRACE (arXiv 2510.04506): it reads a text and writes a rationale.",
    "contrastive": "InfoNCE on texts without rationales, a baseline of GRACE (arXiv 2510.04506).",
    "simcse": "SimCSE (arXiv 2104.08821) on texts without rationales, a baseline of GRACE (arXiv 2510.04506).",
    "contrastive_on_rationales": "InfoNCE on texts with rationales, a baseline of GRACE (arXiv 2510.04506). The "
    "rationales are the base model's: it reads them, and is not meant to write them.",
    "rejection_sft": "cross-entropy on its best-rewarded rationales, a baseline of GRACE (arXiv 2510.04506): it reads "
    "a text and writes a rationale.",
}


def _region(config: GraceConfig) -> str:
    return "text" if config.method.prompt_only else config.backbone.pooling.region


def _recipe(config: GraceConfig) -> list[str]:
    """Return what the model card says about reward, objective and rationales."""
    rollout, method = config.rollout, config.method
    sampled = f"up to {rollout.max_tokens} tokens"
    if method.name == "grace":
        what = f"reward: {config.reward.name}; objective: {config.objective.name}; K = {rollout.group_size}, {sampled}"
    elif method.name == "rejection_sft":
        what = f"reward: {config.reward.name}; the best of {rollout.group_size} rationales, {sampled}"
    else:
        what = f"temperature {method.temperature}, {config.objective.mini_batch_size} instances an update"
        what += f"; rationales of {sampled}" if method.name == "contrastive_on_rationales" else ""
        what += f"; attention dropout {method.dropout}" if method.name == "simcse" else ""
    return [f"- {what}"]


def _base_model(config: GraceConfig) -> str | None:
    known = {"embedded": "HuggingFaceTB/SmolLM2-135M-Instruct", "tiny": None}
    return known.get(config.backbone.source, config.backbone.path)


def model_card(config: GraceConfig, kind: str, results: Mapping[str, Any], *, stock: bool) -> str:
    """Return a README: description, results with intervals, code to use it from the folder above, limits.

    Args:
        config: The settings of the run.
        kind: `merged` or `adapter`, the folder's name.
        results: The run's summary.
        stock: Whether sentence-transformers loads it without grace-exp.
    """
    pooling, base = config.backbone.pooling, _base_model(config)
    license_name = _LICENSES.get(base or "")
    front: dict[str, Any] = {
        **({"base_model": base} if base else {}),
        **({"license": license_name} if license_name else {}),
        "library_name": "sentence-transformers",
        "pipeline_tag": "feature-extraction",
        "tags": ["sentence-transformers", "grace-exp", "text-embedding", "reinforcement-learning"],
    }
    if results.get("heldout"):
        front["model-index"] = [{"name": config.name, "results": _index(config, results["heldout"])}]
    return "\n".join(
        [
            "---",
            yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip(),
            "---",
            "",
            f"# {config.name}",
            "",
            f"{config.backbone.name} trained with {_METHODS[config.method.name]}",
            f"The pooled hidden states of `{_region(config)}` ({pooling.method}, layer {pooling.layer}) are its "
            "embedding.",
            "",
            f"- data: {config.data.name} ({config.data.mode}), {config.job.steps} steps of {config.job.batch_size} "
            f"instances, seed {config.seed}",
            *_recipe(config),
            f"- system prompt: {json.dumps(config.prompt.system, ensure_ascii=False)}",
            "",
            *_figures(config, results),
            *_use(config, kind, stock),
            *_limits(config, license_name),
        ]
    )


def _index(config: GraceConfig, heldout: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the results after training, in the format of hubs."""
    entries = []
    for name, figures in heldout.items():
        chosen = config.evaluation.sets[name]
        task, metric = _TASKS[chosen.kind]
        key = "prompt_only_after" if config.method.prompt_only else "after"
        if key not in figures:
            continue
        entries.append(
            {
                "task": {"type": task},
                "dataset": {"name": f"{chosen.source} {chosen.split}", "type": chosen.source},
                "metrics": [{"type": metric, "value": round(float(figures[key]["value"]), 2)}],
            }
        )
    return entries


def _figures(config: GraceConfig, results: Mapping[str, Any]) -> list[str]:
    rows = [
        f"| {name} | {row.get('before', '')} | {row.get('after', '')} | {row.get('prompt_only_after', '')} |"
        for name, row in results.get("table", {}).items()
    ]
    if not rows:
        return []
    head = ["| set | before | after | prompt only, after |", "|---|---|---|---|"]
    shown = ["## Held-out figures", "", "With 95 % bootstrap intervals.", "", *head, *rows, ""]
    timed = {name: row for name, row in results.get("latency", {}).items() if row["ms_per_text"] is not None}
    if not timed or config.method.prompt_only:  # times are measured for texts with rationales
        return shown
    machine = next(iter(timed.values()))["machine"]
    processes = f", {config.processes} processes" if config.processes > 1 else ""
    lines = [f"| {name} | {row['tokens_per_text']:.1f} | {row['ms_per_text']:.1f} |" for name, row in timed.items()]
    return [
        *shown,
        f"Times with rationale, written by {config.rollout.engine}, all texts of a set at once; {machine}{processes}.",
        "",
        f"| set | tokens per text | {_TIME} |",
        "|---|---|---|",
        *lines,
        "",
    ]


def without_times(card: str) -> str:
    """Return a README without the column of milliseconds; all else is equal in two runs of one seed."""
    lines, timed = [], False
    for line in card.split("\n"):
        timed = line.endswith(f"| {_TIME} |") or (timed and line.startswith("|"))
        lines.append(line.rsplit("|", 2)[0] if timed else line)
    return "\n".join(lines)


def with_section(card: str, title: str, lines: Sequence[str]) -> str:
    """Return the README with a section that replaces the one of the same title, or comes before `## Use`.

    Args:
        card: The README.
        title: Title of the section.
        lines: Text below the title.
    """
    head = f"## {title}\n"
    without = re.sub(rf"^{re.escape(head)}.*?(?=^## |\Z)", "", card, flags=re.MULTILINE | re.DOTALL)
    section = "\n".join([head, *lines, "", ""])
    before, use, behind = without.partition("## Use\n")
    return before + section + use + behind


def _use(config: GraceConfig, kind: str, stock: bool) -> list[str]:
    leave = "" if stock else ", trust_remote_code=True"
    needs = (
        "It loads without grace-exp."
        if stock
        else f"It needs grace-exp (in a clone of the project: `{clone_command()}`) and `trust_remote_code=True`, "
        "without which sentence-transformers imports no module of another package."
    )
    library, name = (
        ("peft", "AutoPeftModelForCausalLM") if kind == "adapter" else ("transformers", "AutoModelForCausalLM")
    )
    text = '["Prices fell.", "It got cheaper."]'
    causal = (
        []
        if kind == "adapter" and config.backbone.source != "hub"
        else [
            "The language model alone:",
            "",
            "```python",
            f"from {library} import {name}",
            "",
            f'model = {name}.from_pretrained("{kind}")',
            "```",
            "",
        ]
    )
    return [
        "## Use",
        "",
        f"`{kind}` is the folder that holds this file.",
        "",
        "```python",
        "from sentence_transformers import SentenceTransformer",
        "",
        f'model = SentenceTransformer("{kind}"{leave})',
        f"vectors = model.encode({text})",
        "model.similarity(vectors, vectors)",
        "```",
        "",
        needs,
        "",
        "```python",
        "from grace_exp import GraceEncoder",
        "",
        f'encoder = GraceEncoder.from_pretrained("{kind}")',
        f"vectors = encoder.encode({text})",
        "print(encoder.rationales)",
        "```",
        "",
        *causal,
        f"Prompt, pooling and rationale budget are in `{SETTINGS_FILE}`.",
        "",
    ]


def _limits(config: GraceConfig, license_name: str | None) -> list[str]:
    writes = not config.method.prompt_only
    cost = (
        f"Every text costs up to {config.rollout.max_tokens} written tokens." if writes else "No rationale is written."
    )
    backbone = license_name or "of the base model, as its authors give it"
    return [
        "## Limits and licences",
        "",
        f"- {cost} Texts are cut to fit prompts of {config.prompt.max_tokens} tokens.",
        *(["- A rationale may say what the text does not say; it does not explain the facts."] if writes else []),
        f"- It was measured on the sets above only. Licence of the weights: {backbone}; the data's licences "
        f"({config.data.name}) are their owners'.",
        "",
    ]
