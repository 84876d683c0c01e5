"""Train instruct LLMs to embed text by writing rationales (GRACE)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grace_exp.encoder.encoder import GraceEncoder

__all__ = ["GraceEncoder"]


def __getattr__(name: str) -> Any:
    """Import the encoder at its first use, so that the command line does not wait for torch."""
    if name == "GraceEncoder":
        from grace_exp.encoder.encoder import GraceEncoder

        return GraceEncoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
