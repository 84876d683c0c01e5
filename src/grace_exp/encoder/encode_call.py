"""What a call of `GraceEncoder.encode` asks for, checked before anything is computed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from grace_exp.data.batch import Role
from grace_exp.encoder.center import check_single
from grace_exp.encoder.given_rationales import given_ids
from grace_exp.encoder.modes import Mode, check_call, listed, longest_of, role_of, writes
from grace_exp.policy.model_checks import check_attention, check_positions
from grace_exp.policy.packing import Region

if TYPE_CHECKING:
    from grace_exp.encoder.encoder import GraceEncoder


@dataclass(frozen=True)
class EncodeCall:
    """A call with the encoder's own settings in the place of what it leaves open.

    Attributes:
        texts: One or several.
        role: Of the texts.
        mode: Who writes rationales.
        writing: `max_tokens`, 0 where this role writes none, `temperature`, `seed`, `samples` and `batch_size`.
        rationales: Token ids of given rationales, one list a text; None: none are given.
        region: What is pooled.
        truncate_dim: Number of dimensions that are kept; None: all.
    """

    texts: list[Any]
    role: Role
    mode: Mode
    writing: dict[str, Any]
    rationales: Any
    region: Region
    truncate_dim: int | None

    @property
    def writes(self) -> bool:
        """Whether rationales may be written."""
        return bool(self.writing["max_tokens"])


def checked_call(
    encoder: "GraceEncoder",
    texts: object,
    *,
    prompt_name: str | None,
    batch_size: int,
    truncate_dim: int | None,
    mode: Mode | None,
    role: Role | str | None,
    max_tokens: int | None,
    temperature: float,
    seed: int,
    samples: int,
    rationales: Sequence[str | Sequence[int]] | None,
) -> EncodeCall:
    """Return what is to be done; `GraceEncoder.encode` says what the arguments mean.

    Raises:
        ConfigError: No such role or mode, settings that contradict each other, more tokens than the model reads, or no
            mean to subtract.
        DataError: Something is no text, or there is not one of the given rationales per text.
    """
    inputs = listed(texts)
    given = None
    if rationales is not None:
        several = samples if samples > 1 else None
        asked_for = {"mode": mode, "max_tokens": max_tokens, "temperature": temperature, "samples": several}
        given = given_ids(rationales, len(inputs), encoder.backbone, **asked_for)
        max_tokens = 0
    dimensions = encoder.truncate_dim if truncate_dim is None else truncate_dim
    mode = mode or encoder.mode
    budget = encoder.max_tokens if max_tokens is None else max_tokens
    check_call(
        inputs,
        batch_size=batch_size,
        mode=mode,
        max_tokens=budget,
        temperature=temperature,
        samples=samples,
        truncate_dim=dimensions,
    )
    text_role = role_of(role, prompt_name)
    budget = budget if writes(mode, text_role) else 0
    check_single(encoder.center, samples if budget else 1)
    if encoder.center is not None and inputs:
        hidden = encoder.get_embedding_dimension()
        if budget or given:
            encoder.center.mean("rationale", hidden, encoder.name)
        if mode == "adaptive" or not (budget or given):
            encoder.center.mean("prompt_only", hidden, encoder.name)
    longest = longest_of(encoder.prompt.max_tokens, budget if given is None else max(map(len, given), default=0))
    check_positions(encoder.policy.causal_lm.config, encoder.name, longest)
    check_attention(encoder.policy.causal_lm.config, encoder.name, longest.tokens)
    region: Region = encoder.policy.pooling.region if budget or given else "text"
    writing = {
        "max_tokens": budget,
        "temperature": temperature,
        "seed": seed,
        "samples": samples,
        "batch_size": batch_size,
    }
    return EncodeCall(inputs, text_role, mode, writing, given, region, dimensions)
