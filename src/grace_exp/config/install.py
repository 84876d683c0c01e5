"""The command that installs an extra of this package, which is on no package index."""

import shlex
from importlib import metadata
from pathlib import Path

_DISTRIBUTION = "grace-exp"


def install_command(extra: str | None = None, *, constraints: str | None = None) -> str:
    """Return a shell command that works as printed on this machine.

    In a checkout the command installs the checkout with its tested versions. Elsewhere a wheel is installed, and the
    command names the extra's requirements.

    Args:
        extra: An extra of `pyproject.toml`; None: the package without extras.
        constraints: `cpu.txt` or `cuda.txt` of `constraints/`; None: the one that fits the installed PyTorch.
    """
    root = Path(__file__).resolve().parents[3]
    if not (root / "pyproject.toml").is_file():
        return shlex.join(["pip", "install", *_requirements(extra)])
    file = root / "constraints" / (constraints or _constraints())
    package = f"{_seen_from_here(root)}[{extra}]" if extra else _seen_from_here(root)
    return f"pip install -c {shlex.quote(_seen_from_here(file))} -e {_quoted(package)}"


def clone_command(extra: str | None = None) -> str:
    """Return the install command for another machine, to be run in a clone of the project."""
    return f"pip install -c constraints/cpu.txt -e {_quoted(f'.[{extra}]' if extra else '.')}"


def _quoted(package: str) -> str:
    return f"'{package}'" if "[" in package and "'" not in package else shlex.quote(package)


def _seen_from_here(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _constraints() -> str:
    try:
        return "cuda.txt" if "+cu" in metadata.version("torch") else "cpu.txt"
    except metadata.PackageNotFoundError:
        return "cpu.txt"


def _requirements(extra: str | None) -> list[str]:
    """Return the requirements that the installed wheel's metadata lists for the extra, without their markers."""
    listed = metadata.requires(_DISTRIBUTION) or []
    wanted = f'extra == "{extra}"' if extra else None
    pairs = [line.replace("'", '"').partition(";") for line in listed]
    return [name.strip() for name, _, marker in pairs if (wanted in marker if wanted else not marker)]
