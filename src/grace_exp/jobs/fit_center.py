"""Fit the mean that `backbone.pooling.transform=center` subtracts, and write it into the model's exports."""

import random
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from grace_exp.config.root import GraceConfig
from grace_exp.data.batch import Role
from grace_exp.encoder.center import CENTER_FILE, Center, write_center
from grace_exp.encoder.encoder import GraceEncoder
from grace_exp.encoder.modes import Mode, role_of, writes
from grace_exp.encoder.pretrained import SETTINGS_FILE
from grace_exp.encoder.stock_modules import is_stock, write_centering
from grace_exp.encoder.vectors import Vectors
from grace_exp.errors import DataError
from grace_exp.jobs.embed import checked_rows
from grace_exp.jobs.recipe import configured_recipe
from grace_exp.jobs.run_encoder import encode_whole, opened_encoder, rule_folders
from grace_exp.jobs.terminal import is_first_process, our_console
from grace_exp.rollout.protocol import derive_seed

Sample = Mapping[Role, Sequence[str]]


def fit_center(config: GraceConfig) -> dict[str, float]:
    """Embed a reference sample, with rationales as in the model's training and without, and store both means.

    The sample is drawn from `job.input`, in the role `job.role`, or from the queries and positives of the configured
    training data. Each mean is over whole embeddings, not normalised, of both roles.

    Returns:
        `center/texts`; and the mean cosine of two texts of the sample, in the model's own mode, before and after:
        `center/cosine_before`, `center/cosine_after`.

    Raises:
        DataError: The sample has fewer than two texts.
        MissingResourceError: The model does not exist, or no folder of it can hold a mean.
    """
    folders = rule_folders(config)
    sample = _sample(config)
    console = our_console()
    with opened_encoder(config) as encoder:
        encoder.center = None  # the mean is that of embeddings before centring
        found = _embedded(config, encoder, sample)
    means = {name: None if not len(vectors) else vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
             for name, vectors in found.items()}  # fmt: skip
    center = Center(**means)
    if is_first_process():
        for folder in folders:
            write_center(folder, center, SETTINGS_FILE)
            if is_stock(folder) and center.prompt_only is not None:
                write_centering(folder, center.prompt_only)
    for folder in folders:
        console.print(f"Mean: {folder / CENTER_FILE}", highlight=False, soft_wrap=True, markup=False)
    used = found["rationale"] if len(found["rationale"]) else found["prompt_only"]
    before, after = _mean_cosine(used), _mean_cosine(used - used.mean(axis=0))
    texts = sum(map(len, sample.values()))
    line = f"{texts} texts; mean cosine of two of them {before:.3f}, centred {after:.3f}"
    console.print(line, highlight=False, soft_wrap=True)
    return {"center/texts": float(texts), "center/cosine_before": before, "center/cosine_after": after}


def _sample(config: GraceConfig) -> Sample:
    """Return distinct texts by role, at most `job.center_texts`."""
    most = config.job.center_texts
    draw = random.Random(derive_seed(config.seed, "center"))
    sample: dict[Role, list[str]]
    if config.job.input is not None:
        rows, *_ = checked_rows(config)
        texts = list(dict.fromkeys(row.text for row in rows))
        sample = {role_of(config.job.role, None): draw.sample(texts, min(most, len(texts)))}
    else:
        rejects = Path(config.run_dir) / "rejects.jsonl" if is_first_process() else None
        recipe = configured_recipe(config, rejects)
        drawn = [recipe[index] for index in draw.sample(range(len(recipe)), min(most, len(recipe)))]
        queries, documents = (
            dict.fromkeys(texts) for texts in zip(*((i.query, i.positive) for i in drawn), strict=True)
        )
        half = max(1, most // 2)
        sample = {Role.QUERY: list(islice(queries, half)), Role.POSITIVE: list(islice(documents, half))}
    if sum(map(len, sample.values())) < 2:
        raise DataError(f"job.input={config.job.input}: a mean needs two texts, better some hundreds")
    return sample


def _embedded(config: GraceConfig, encoder: GraceEncoder, sample: Sample) -> dict[str, Vectors]:
    """Return both kinds of embeddings, [texts, hidden]; without rationale only, if the mode asks for none."""
    mode = config.job.encode.mode or encoder.mode
    found: dict[str, list[Vectors]] = {"rationale": [], "prompt_only": []}
    for role, texts in sample.items():
        kinds: list[Mode] = ["rationale", "prompt_only"] if writes(mode, role) else ["prompt_only"]
        for kind in kinds:
            found[kind].append(encode_whole(config, encoder, texts, mode=kind, role=role))
    empty = np.empty((0, encoder.get_embedding_dimension()), dtype=np.float32)
    return {kind: np.concatenate([empty, *parts]) for kind, parts in found.items()}


def _mean_cosine(vectors: Vectors) -> float:
    """Return the mean cosine over all pairs of two different rows."""
    unit = vectors.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    count = len(unit)
    return float(((unit @ unit.T).sum() - count) / (count * (count - 1)))
