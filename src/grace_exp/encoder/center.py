"""Centred embeddings: the mean of a reference sample is subtracted before an embedding is scaled to length 1."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from grace_exp.config.advice import override
from grace_exp.config.backbone import PoolingConfig
from grace_exp.encoder.vectors import Vectors
from grace_exp.errors import ConfigError
from grace_exp.tracking.atomic import atomic_path
from grace_exp.tracking.summary import write_json_atomic

CENTER_FILE = "center.safetensors"
"""The file of the means beside exported weights."""
Kind = Literal["rationale", "prompt_only"]
FIT_COMMAND = "python -m grace_exp job=fit_center {model} job.input=texts.txt"


@dataclass(frozen=True, eq=False)
class Center:
    """Mean embeddings of a reference sample, not normalised, separately for texts with and without rationale.

    Attributes:
        rationale: Mean for texts with their rationale, [hidden] float32; None: it was not fitted.
        prompt_only: Mean for texts without rationale, in the same form.
    """

    rationale: Vectors | None
    prompt_only: Vectors | None

    def removed(self, vectors: Vectors, written: NDArray[np.bool_], model: str) -> Vectors:
        """Return the embeddings minus the mean.

        Args:
            vectors: Embeddings, [texts, hidden], of full length and not normalised.
            written: Whether a text has a rationale, [texts].
            model: The model's name, for messages.

        Raises:
            ConfigError: The mean that is needed is missing or of another length.
        """
        result = vectors.astype(np.float64)
        kinds: tuple[tuple[Kind, NDArray[np.bool_]], ...] = (("rationale", written), ("prompt_only", ~written))
        for name, rows in kinds:
            if not rows.any():
                continue
            result[rows] -= self.mean(name, vectors.shape[1], model)
        centred: Vectors = result.astype(np.float32)
        return centred

    def mean(self, kind: Kind, hidden: int, model: str) -> Vectors:
        """Return the mean of texts with or without rationale, [hidden].

        Args:
            kind: Which of the two.
            hidden: Length of the model's embeddings.
            model: The model's name, for messages.

        Raises:
            ConfigError: The mean is missing or of another length.
        """
        mean = self.rationale if kind == "rationale" else self.prompt_only
        command = FIT_COMMAND.format(model=override("job.model", model))
        if mean is None:
            raise ConfigError(
                f"backbone.pooling.transform=center: {CENTER_FILE} of {model} has no mean for the mode {kind}; fit "
                f"one: {command} job.encode.mode={kind}"
            )
        if mean.shape != (hidden,):
            raise ConfigError(
                f"backbone.pooling.transform=center: {CENTER_FILE} of {model} is for embeddings of {len(mean)} "
                f"numbers, and the model's have {hidden}: fit it again: {command}"
            )
        return mean

    @property
    def digest(self) -> str:
        """A digest of both means, 16 hex digits, for keys of the cache."""
        found = hashlib.blake2b(digest_size=8)
        for mean in (self.rationale, self.prompt_only):
            found.update(b"none" if mean is None else np.asarray(mean, "<f4").tobytes())
        return found.hexdigest()


def check_single(center: Center | None, samples: int) -> None:
    """Refuse several rationales per text, because their unit vectors are averaged before a mean could be subtracted.

    Raises:
        ConfigError: There is a mean to subtract, and more than one sample.
    """
    if center is not None and samples > 1:
        raise ConfigError(
            f"samples={samples} with backbone.pooling.transform=center: the embedding of several "
            "rationales is the mean of "
            "their unit vectors, from which no mean of whole embeddings can be removed; set samples=1"
        )


def read_center(folder: Path, transform: str) -> Center | None:
    """Return the means that `pooling.transform` of a model folder asks for; None if it asks for none.

    Raises:
        ConfigError: The means are missing or damaged.
    """
    if transform == "none":
        return None
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = folder / CENTER_FILE
    command = FIT_COMMAND.format(model=override("job.model", folder))
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"the settings beside {path} say backbone.pooling.transform=center, but it cannot be read "
            f"({error}): fit it again: "
            f"{command}, or set transform to none in grace_config.json"
        ) from error
    means = {name: found.get(name) for name in ("rationale", "prompt_only")}
    usable = [mean for mean in means.values() if mean is not None]
    if not usable or not all(mean.ndim == 1 and np.isfinite(mean).all() for mean in usable):
        raise ConfigError(f"{path} holds no mean of embeddings: fit it again: {command}")
    return Center(**means)


def pooling_of(pooling: PoolingConfig, center: Center | None) -> dict[str, Any]:
    """Return the settings of pooling and centring that decide an embedding; without a mean as in earlier versions."""
    plain = asdict(replace(pooling, transform="none"))
    del plain["transform"]
    return plain if center is None else {**plain, "center": center.digest}


def write_center(folder: Path, center: Center, settings_file: str) -> None:
    """Write the means beside a model, and then the setting that they are to be subtracted."""
    from safetensors.numpy import save_file

    means = {"rationale": center.rationale, "prompt_only": center.prompt_only}
    with atomic_path(folder / CENTER_FILE) as temporary:
        save_file({name: np.asarray(mean, np.float32) for name, mean in means.items() if mean is not None}, temporary)
    path = folder / settings_file
    settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    settings["pooling"]["transform"] = "center"
    write_json_atomic(path, settings)
