"""The strictness that all schemas share."""

from pydantic import ConfigDict

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
"""Unknown keys are errors, no type is converted ("8" is not an integer), and nan and inf are not allowed."""
