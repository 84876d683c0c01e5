"""What a call of the encoder may ask for: roles, modes and their limits."""

from collections.abc import Sequence
from typing import Literal

from grace_exp.data.batch import Role
from grace_exp.data.lines import describe
from grace_exp.errors import ConfigError, DataError

Mode = Literal["rationale", "prompt_only", "query_only", "document_only"]
"""Who writes rationales: every text, none, or one side."""

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
}


def role_of(role: Role | str | None, prompt_name: str | None) -> Role:
    """The role of a call's texts; without any, that of the prompt's name, otherwise query.

    Raises:
        ConfigError: There is no such role.
    """
    if role is None:
        return _ROLES.get(prompt_name or "query", Role.QUERY)
    if role not in _ROLES:
        raise ConfigError(f"encode: role={role!r} is none of {', '.join(_ROLES)}")
    return _ROLES[role]


def names_role(prompt_name: str) -> bool:
    """Whether it is the name of a role, and so needs no prompt of its own."""
    return prompt_name in _ROLES


def writes(mode: Mode, role: Role) -> bool:
    """Whether texts of the role get rationales."""
    return role in _WRITERS[mode]


def check_call(
    texts: Sequence[object], *, batch_size: int, mode: str, max_tokens: int, temperature: float, samples: int
) -> None:
    """Refuse what cannot be done.

    Raises:
        ConfigError: A setting is out of range, or two contradict each other.
        DataError: Something is no text.
    """
    if mode not in _WRITERS:
        raise ConfigError(f"encode: mode={mode!r} is none of {', '.join(_WRITERS)}")
    limits = {"batch_size": (batch_size, 1), "samples": (samples, 1), "max_tokens": (max_tokens, 0)}
    for name, (value, least) in {**limits, "temperature": (temperature, 0)}.items():
        if value < least:
            raise ConfigError(f"encode: {name}={value}: {least} or more")
    if samples > 1 and temperature == 0 and mode != "prompt_only":
        raise ConfigError(
            f"encode: samples={samples} with temperature=0 would write the same rationale {samples} times: set a "
            "temperature above 0"
        )
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"encode: texts[{number}] is {describe(text)}; expected a text")
