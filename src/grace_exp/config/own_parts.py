"""Functions that the user writes and names by a file or an import path, and how they are found.

docs/extending.md says which functions a run can take, with their arguments and results.
"""

import functools
import hashlib
import importlib
import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from grace_exp.config.base import STRICT
from grace_exp.errors import ConfigError

Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
ModulePath = Annotated[str, Field(min_length=1)]


@dataclass(config=STRICT, frozen=True, kw_only=True)
class OwnFunction:
    """A function that the user writes."""

    path: ModulePath
    """A Python file (my_parts.py, relative to the working directory) or an import path (my_package.parts)."""
    name: Name
    """Name of the function."""


@plain_dataclass(frozen=True)
class OwnPart:
    """A user's function that a run calls.

    Attributes:
        key: The setting that names the function, e.g. `reward.terms.custom`.
        path: As in `OwnFunction`.
        name: As in `OwnFunction`.
        arguments: The names of the arguments it is called with, e.g. `("inputs",)`.
    """

    key: str
    path: str
    name: str
    arguments: tuple[str, ...]

    def load(self) -> Callable[..., Any]:
        """Return the function.

        Raises:
            ConfigError: The file, module or function does not exist, its import fails, or it cannot be called
                with `arguments`. The message names the setting.
        """
        module = self._module()
        function: Callable[..., Any] | None = getattr(module, self.name, None)
        if function is None or not callable(function):
            there = ", ".join(name for name, _ in inspect.getmembers(module, inspect.isfunction)) or "none"
            raise ConfigError(
                f"{self.key}: {self.path} has no function {self.name!r}; its functions: {there}. Set {self.key}.name"
            )
        try:
            inspect.signature(function).bind(*self.arguments)
        except TypeError as error:
            call = f"{self.name}({', '.join(self.arguments)})"
            raise ConfigError(
                f"{self.key}: {self.path} defines {self.name}{inspect.signature(function)}, which cannot be called as "
                f"{call} ({error}). docs/extending.md has the signature"
            ) from error
        return function

    def source(self) -> Path | None:
        """The file that defines the function; None for a module without a source file."""
        file = inspect.getsourcefile(self._module())
        return Path(file) if file else None

    def _module(self) -> Any:
        is_file = self.path.endswith(".py") or "/" in self.path
        file = Path(self.path).expanduser()
        if is_file and not file.is_file():
            raise ConfigError(f"{self.key}.path={self.path}: no such file (working directory {Path.cwd()})")
        try:
            if is_file:
                return _module_of_file(file.resolve(), file.stat().st_mtime_ns)
            return importlib.import_module(self.path)
        except Exception as error:  # the user's module may raise anything while it is imported
            problem = f"{type(error).__name__}: {error}"
            raise ConfigError(f"{self.key}.path={self.path}: importing it failed: {problem}") from error


@functools.cache
def _module_of_file(file: Path, _modified: int) -> Any:
    name = f"grace_exp_own_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None  # it ends in .py
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
