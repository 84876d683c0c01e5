"""The arguments of the encoder's calls: roles, modes and their limits."""

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, Literal

from grace_exp.data.batch import Role
from grace_exp.data.lines import describe, undecodable
from grace_exp.errors import ConfigError, DataError
from grace_exp.policy.model_checks import Longest

Mode = Literal["rationale", "prompt_only", "query_only", "document_only", "adaptive"]
"""Which texts get a rationale: all, none, one side, or those that the model's rule chooses."""

_ROLES = {
    "query": Role.QUERY,
    "document": Role.POSITIVE,
    "passage": Role.POSITIVE,
    "positive": Role.POSITIVE,
    "negative": Role.NEGATIVE,
}
_WRITERS: dict[str, tuple[Role, ...]] = {
    "rationale": (Role.QUERY, Role.POSITIVE, Role.NEGATIVE),
    "prompt_only": (),
    "query_only": (Role.QUERY,),
    "document_only": (Role.POSITIVE, Role.NEGATIVE),
    "adaptive": (Role.QUERY, Role.POSITIVE, Role.NEGATIVE),
}


def role_of(role: Role | str | None, prompt_name: str | None) -> Role:
    """Return the role of a call's texts; without one, the role of the prompt's name, otherwise query.

    Raises:
        ConfigError: There is no such role.
    """
    if role is None:
        return _ROLES.get(prompt_name or "query", Role.QUERY)
    if role not in _ROLES:
        raise ConfigError(f"encode: role={role!r} is not one of {', '.join(_ROLES)}")
    return _ROLES[role]


def names_role(prompt_name: str) -> bool:
    """Whether the name is that of a role, and so needs no prompt of its own."""
    return prompt_name in _ROLES


def writes(mode: Mode, role: Role) -> bool:
    """Whether texts of the role get rationales; in the mode `adaptive` some of them do."""
    return role in _WRITERS[mode]


def longest_of(prompt_tokens: int, max_tokens: int) -> Longest:
    """Return the longest prompt and rationale of a call."""
    return Longest(
        prompt_tokens + max_tokens, f"encode: a prompt of {prompt_tokens} (prompt.max_tokens) + max_tokens={max_tokens}"
    )


def listed(texts: object) -> list[Any]:
    """Return the texts of a call, one or several, as a list.

    Raises:
        DataError: It is not a text or an ordered list of items: a dict, a set, bytes.
    """
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, Mapping | Set | bytes) or not isinstance(texts, Iterable):
        raise DataError(f"encode: texts is {describe(texts)}; expected a text or a list of texts")
    return list(texts)


def check_call(
    texts: Sequence[object],
    *,
    batch_size: int,
    mode: str,
    max_tokens: int,
    temperature: float,
    samples: int,
    truncate_dim: int | None = None,
) -> None:
    """Check the arguments of a call.

    Raises:
        ConfigError: A setting is out of range, or two contradict each other.
        DataError: An item is not a text.
    """
    if mode not in _WRITERS:
        raise ConfigError(f"encode: mode={mode!r} is not one of {', '.join(_WRITERS)}")
    limits = {"batch_size": (batch_size, 1), "samples": (samples, 1), "max_tokens": (max_tokens, 0)}
    if truncate_dim is not None:
        limits["truncate_dim"] = (truncate_dim, 1)
    for name, (value, least) in {**limits, "temperature": (temperature, 0)}.items():
        if not least <= value < math.inf:  # also false for nan
            raise ConfigError(f"encode: {name}={value}: {least} or more")
    if samples > 1 and temperature == 0 and mode != "prompt_only":
        raise ConfigError(
            f"encode: samples={samples} with temperature=0 would write the same rationale {samples} times: set a "
            "temperature above 0"
        )
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"encode: texts[{number}] is {describe(text)}; expected a text")
        if reason := undecodable(text):
            raise DataError(f"encode: texts[{number}]: {reason}")
