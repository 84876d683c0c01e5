"""Embeddings in one pass: from the hidden states that a text had while its rationale was written.

An engine that decodes computes every hidden state of prompt and rationale. Pooling them on the way saves a second
forward over both. The result is that of the forward up to rounding; the first batch is compared to check this.
"""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from grace_exp.data.prompts import Prompt
from grace_exp.errors import ConfigError, GraceError
from grace_exp.policy.output_head import compute_dtype
from grace_exp.policy.packing import Region, TextSequence
from grace_exp.policy.pooled_states import PooledStates, StatePooling

if TYPE_CHECKING:
    from grace_exp.policy.policy import Policy

Setting = bool | Literal["auto"]

TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 5e-2}
"""Largest accepted distance of two embeddings, as a share of their length, by precision."""
_COMPARED = 8

_log = logging.getLogger(__name__)


class OnePass:
    """Decides whether embeddings come from the engine, which must have the policy's present weights."""

    def __init__(self, policy: "Policy", setting: Setting) -> None:
        """Start; the first embeddings are compared with the forward.

        Args:
            policy: The policy that computes the forward.
            setting: `hardware.one_pass`.
        """
        self._policy = policy
        self._setting = setting
        self._compared = False

    def wanted(self, engine: object) -> bool:
        """Whether the engine should be asked for pooled states.

        `auto` asks if both compute products in float32; in bfloat16 the two round differently.

        Raises:
            ConfigError: The setting is `true`, and the engine cannot pool.
        """
        able = bool(getattr(engine, "pools_states", False))
        if self._setting is True and not able:
            raise ConfigError(
                f"hardware.one_pass=true: {type(engine).__name__} does not pool hidden states; set "
                "rollout=transformers, or hardware.one_pass=auto"
            )
        if self._setting == "auto":
            dtypes = (self._dtype, getattr(engine, "dtype", torch.float32))
            return able and dtypes == (torch.float32, torch.float32) and not self._policy.sharded
        return self._setting is True

    def rounds_differently(self, engine: object) -> bool:
        """Whether low precision makes embeddings in one pass differ from the forward's by more than the last bits."""
        return self.wanted(engine) and self._dtype in (torch.bfloat16, torch.float16)  # an engine's own is named anyway

    def pooling(self, prompt: Prompt) -> StatePooling:
        """Return what the engine should pool for a prompt."""
        pooling = self._policy.pooling
        return StatePooling(prompt.pool_start, pooling.method, pooling.layer)

    def embed(
        self, sequences: Sequence[TextSequence], pooled: Sequence[PooledStates | None], regions: Sequence[Region]
    ) -> dict[Region, Tensor]:
        """Return embeddings as `Policy.embed` does: from pooled states if there are any, otherwise by a forward.

        Args:
            sequences: Prompts with rationales.
            pooled: The pooled states of each sequence, or None.
            regions: Pooled regions.

        Raises:
            GraceError: The setting is `true`, and the first batch differs from the forward.
        """
        if not self._compared and any(states is not None for states in pooled):
            self._compare(sequences, pooled, regions)
        known = {n: states for n, states in enumerate(pooled) if states is not None and self._setting is not False}
        missing = [number for number in range(len(sequences)) if number not in known]
        rest = self._policy.embed([sequences[number] for number in missing], regions) if missing else {}
        found = {}
        for region in regions:
            rows = {number: states.embedding(region) for number, states in known.items()}
            rows |= dict(zip(missing, rest.get(region, ()), strict=True))
            found[region] = torch.stack([rows[number] for number in range(len(sequences))])
        return found

    @property
    def _dtype(self) -> torch.dtype:
        model = self._policy.model
        return compute_dtype(model.device.type, model.dtype)

    def _compare(
        self, sequences: Sequence[TextSequence], pooled: Sequence[PooledStates | None], regions: Sequence[Region]
    ) -> None:
        """Compare some sequences, shortest to longest, with the forward; beyond rounding, turn one pass off."""
        self._compared = True
        able = [number for number, states in enumerate(pooled) if states is not None]
        able.sort(key=lambda number: len(sequences[number].prompt.token_ids) + len(sequences[number].completion_ids))
        chosen = sorted({able[round(place * (len(able) - 1) / (_COMPARED - 1))] for place in range(_COMPARED)})
        forward = self._policy.embed([sequences[number] for number in chosen], regions)
        worst = 0.0
        for region, expected_NH in forward.items():
            found_NH = torch.stack([states.embedding(region) for n in chosen if (states := pooled[n]) is not None])
            distances_N = (found_NH - expected_NH).norm(dim=1) / expected_NH.norm(dim=1)
            worst = max(worst, float(distances_N.nan_to_num(nan=torch.inf).max()))
        tolerance = TOLERANCE[self._dtype]
        if worst <= tolerance:
            return
        problem = (
            f"embeddings pooled while rationales were written differ from those of a forward by {worst:.2g} of their "
            f"length (rounding in {self._dtype} explains {tolerance:g})"
        )
        if self._setting is True:
            raise GraceError(f"{problem}; set hardware.one_pass=false")
        self._setting = False
        _log.warning("%s: every embedding is computed by a forward from here on (hardware.one_pass=false)", problem)
