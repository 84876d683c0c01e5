"""Turn validation errors into words: the key, the value, what is allowed."""

import dataclasses
import difflib
import json
import types
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra.errors import MissingConfigException
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from grace_exp.config.root import GraceConfig

_PLAIN = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
_BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than", "min_length": "of length at least"}
_BOUNDS["max_length"] = "of length at most"
_LONGEST_VALUE = 80


def explain(error: ValidationError, settings: dict[str, Any]) -> dict[str, str]:
    """Describe each problem of a failed validation in words.

    Args:
        error: The error raised by validating `settings` as a `GraceConfig`.
        settings: The resolved settings.

    Returns:
        The line or lines about each problem, by dotted key of the setting, or of the group whose settings contradict
        each other ("" for the whole). A key has one entry even if pydantic tried and reports several types.
    """
    lines: dict[str, str] = {}
    for problem in error.errors(include_url=False):
        path = _path_in(settings, problem["loc"])
        lines.setdefault(".".join(map(str, path)), _line(problem["type"], problem["msg"], path, problem["input"]))
    return lines


def unknown_key(path: Sequence[str]) -> str | None:
    """Say which keys exist if `path` names one that does not.

    Args:
        path: The parts of a dotted key.

    Returns:
        The nearest key and all keys beside the first unknown part; None if all parts are known.
    """
    for depth in range(len(path)):
        keys = _keys(_type_at(path[:depth]))
        if keys and path[depth] not in keys:
            nearest = difflib.get_close_matches(path[depth], keys, n=1)
            hint = f" (did you mean {'.'.join([*path[:depth], nearest[0]])}?)" if nearest else ""
            place = f"under {'.'.join(path[:depth])}" if depth else "at the top"
            return f"unknown key{hint}; allowed {place}: {', '.join(keys)}"
    return None


def unknown_choice(failure: MissingConfigException) -> str | None:
    """Say which choice of a group was probably meant if there is no such choice; None if Hydra names no choices."""
    group, _, name = (failure.missing_cfg_file or "").rpartition("/")
    options = list(failure.options or ())
    if not group or not options:
        return None
    nearest = difflib.get_close_matches(name, options, n=1)
    hint = f" (did you mean {group}={nearest[0]}?)" if nearest else ""
    return f"{group}={name}: there is no such choice{hint}; there are {', '.join(options)}"


def allowed(hint: Any) -> str:
    """Say in words which values a setting of this type takes, e.g. "a number, more than 0, less than 1, or null"."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return ", ".join([allowed(arguments[0]), *_limits(arguments[1:])])
    if origin in (Union, types.UnionType):
        arms = [allowed(arm) for arm in arguments if arm is not type(None)]
        return ", or ".join(arms + ["null"] * (len(arms) < len(arguments)))
    if origin is Literal:
        return " or ".join(", ".join(map(repr, arguments)).rsplit(", ", 1))
    if origin in (list, tuple):
        return f"a list, each entry {allowed(arguments[0])}"
    if origin is dict:
        return f"a mapping from names, each to {allowed(arguments[1])}"
    if dataclasses.is_dataclass(hint):
        return f"a mapping with keys of {', '.join(_keys(hint))}"
    return _PLAIN[hint]


def _limits(metadata: Sequence[Any]) -> list[str]:
    found = [limit for item in metadata for limit in (item.metadata if isinstance(item, FieldInfo) else [item])]
    bounds = [
        f"{word} {getattr(constraint, name)}"
        for constraint in found
        for name, word in _BOUNDS.items()
        if hasattr(constraint, name)
    ]
    return bounds + [f"matching {constraint.pattern}" for constraint in found if getattr(constraint, "pattern", None)]


def _line(kind: str, message: str, path: Sequence[str | int], value: Any) -> str:
    key = ".".join(map(str, path))
    if kind == "value_error":  # raised by this project: a contradiction within a group or between groups
        problems = message.removeprefix("Value error, ").splitlines()
        return "\n".join(f"{key}: {problem}" if key else problem for problem in problems)
    if kind == "missing":
        return f"{key}: missing; must be {allowed(_type_at(path))}"
    found = json.dumps(value, ensure_ascii=False, default=str)
    if len(found) > _LONGEST_VALUE:
        found = found[:_LONGEST_VALUE] + " ..."
    if kind == "unexpected_keyword_argument":
        return f"{key} = {found}: {unknown_key([str(part) for part in path])}"
    return f"{key} = {found}: must be {allowed(_type_at(path))}{' and finite' if kind == 'finite_number' else ''}"


def _path_in(settings: Any, location: Sequence[str | int]) -> list[str | int]:
    """Drops the parts of pydantic's location that name an arm of a union, not a key."""
    path: list[str | int] = []
    for part in location:
        if isinstance(settings, dict) and (part in settings or part in _keys(_type_at(path))):
            settings = settings.get(part)
        elif isinstance(settings, list) and isinstance(part, int):
            settings = settings[part]
        else:
            continue
        path.append(part)
    return path


def _type_at(path: Sequence[str | int]) -> Any:
    hint: Any = GraceConfig
    for part in path:
        hint = next((inner for arm in _arms(hint) if (inner := _inside(arm, part)) is not None), None)
    return hint


def _inside(hint: Any, part: str | int) -> Any:
    if dataclasses.is_dataclass(hint):
        return get_type_hints(hint, include_extras=True).get(str(part))
    return get_args(hint)[-1] if get_origin(hint) in (dict, list, tuple) else None


def _arms(hint: Any) -> list[Any]:
    if get_origin(hint) is Annotated:
        return _arms(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return [arm for option in get_args(hint) for arm in _arms(option)]
    return [hint]


def _keys(hint: Any) -> list[str]:
    return [field.name for arm in _arms(hint) if dataclasses.is_dataclass(arm) for field in dataclasses.fields(arm)]
