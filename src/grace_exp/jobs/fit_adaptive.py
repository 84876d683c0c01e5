"""Fit the rule of `mode=adaptive` on held-out pairs, and write it into the model's exports."""

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from grace_exp.config.root import GraceConfig
from grace_exp.data.text_keys import normalized
from grace_exp.encoder.adaptive_fit import FittedRule, PairEmbeddings, fit_rule, rule_lines
from grace_exp.encoder.adaptive_rule import RULE_FILE, write_rule
from grace_exp.encoder.encoder import GraceEncoder
from grace_exp.errors import DataError
from grace_exp.evaluation.heldout_texts import heldout_texts
from grace_exp.jobs.input_pairs import read_pairs
from grace_exp.jobs.run_encoder import encode_whole, opened_encoder, rule_folders
from grace_exp.jobs.terminal import is_first_process, our_console
from grace_exp.tracking.summary import write_json_atomic

REPORT_FILE = "adaptive.json"
"""File in the run folder: what the rule is worth on folds that it was not fitted on."""

_LEAST_PAIRS = 20


def fit_adaptive(config: GraceConfig) -> dict[str, float]:
    """Embed the pairs of `job.input` with and without rationales, fit the rule, and write it beside the weights.

    Pairs with a text of `evaluation.sets` are left out. Repeated queries and positives count once.

    Returns:
        `adaptive/pairs`; on unseen folds `adaptive/share` (of the texts that get a rationale, 0 to 1) and
        `adaptive/gain/{rule,random,always,best}` (nats per text over writing none; `random`: as many texts at random).

    Raises:
        DataError: The input does not exist, a row lacks a text, or rationales help nearly all texts or nearly none.
        MissingResourceError: The model does not exist, or no folder of it can hold a rule.
    """
    folders = rule_folders(config)
    queries, documents = _distinct_pairs(config)
    console = our_console()
    with opened_encoder(config) as encoder:
        of_queries, query_tokens = _both_modes(config, encoder, queries, "query")
        of_documents, document_tokens = _both_modes(config, encoder, documents, "document")
        read = _before_centering(config, encoder, queries, documents)
        fitted = fit_rule(PairEmbeddings(of_queries, of_documents, read), config.job.adaptive, config.seed)
        tokens = np.concatenate([query_tokens, document_tokens])
        for line in rule_lines(fitted, tokens, config.evaluation.bootstrap):
            console.print(line, highlight=False, soft_wrap=True, markup=False)
        if is_first_process():
            _write(config, encoder, fitted, tokens, folders)
        for folder in folders:
            console.print(f"Rule: {folder / RULE_FILE}", highlight=False, soft_wrap=True, markup=False)
    gains = {f"adaptive/gain/{name}": value for name, value in fitted.worth().items()}
    return {"adaptive/pairs": float(len(queries)), "adaptive/share": float(fitted.written.mean()), **gains}


def _distinct_pairs(config: GraceConfig) -> tuple[list[str], list[str]]:
    """Return pairs whose query and positive both occur for the first time, without texts of the held-out sets."""
    heldout = heldout_texts(config.evaluation, Path(config.cache_dir)).values()
    known = {normalized(text) for texts in heldout for text in texts}
    queries: dict[str, None] = {}
    documents: dict[str, None] = {}
    rows = list(zip(*read_pairs(config), strict=True))
    for query, document in rows:
        new = query not in queries and document not in documents
        if new and not {normalized(query), normalized(document)} & known:
            queries[query] = documents[document] = None
    console = our_console()
    if len(queries) < len(rows):
        line = f"{len(rows) - len(queries)} pairs are left out: a text of evaluation.sets, or one that occurred before"
        console.print(line, highlight=False, soft_wrap=True)
    if len(queries) < _LEAST_PAIRS:
        raise DataError(
            f"job.input={config.job.input}: {len(queries)} pairs are left, and a rule needs {_LEAST_PAIRS}, better "
            "some hundreds: give more pairs"
        )
    return list(queries), list(documents)


def _both_modes(
    config: GraceConfig, encoder: GraceEncoder, texts: list[str], role: Literal["query", "document"]
) -> tuple[tuple[NDArray[np.float32], NDArray[np.float32]], NDArray[np.int64]]:
    """Return embeddings without and with rationale, and the numbers of tokens per text."""
    samples = config.job.encode.samples
    bare = encode_whole(config, encoder, texts, mode="prompt_only", role=role)
    written = encode_whole(config, encoder, texts, mode="rationale", role=role, samples=samples)
    tokens = np.array(encoder.rationale_tokens).reshape(len(texts), -1).sum(axis=1)
    return (bare, written), tokens


def _before_centering(
    config: GraceConfig, encoder: GraceEncoder, queries: list[str], documents: list[str]
) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """Return prompt-only embeddings of both sides before centring, if the model centres; otherwise None."""
    if encoder.center is None:
        return None
    center, encoder.center = encoder.center, None
    try:
        return (
            encode_whole(config, encoder, queries, mode="prompt_only", role="query"),
            encode_whole(config, encoder, documents, mode="prompt_only", role="document"),
        )
    finally:
        encoder.center = center


def _write(
    config: GraceConfig, encoder: GraceEncoder, fitted: FittedRule, tokens: NDArray[np.int64], folders: list[Path]
) -> None:
    for folder in folders:
        write_rule(folder, fitted.rule)
    report = {
        "model": encoder.name,
        "pairs": len(tokens) // 2,
        "share": float(fitted.written.mean()),
        "tokens_per_text": {"always": float(tokens.mean()), "rule": float((tokens * fitted.written).mean())},
        "gain": fitted.worth(),
        "gain_over": fitted.over(config.evaluation.bootstrap),
        "seed": config.seed,
    }
    write_json_atomic(Path(config.run_dir) / REPORT_FILE, report)
