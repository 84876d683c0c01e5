"""What every schema shares: how strict it is."""

from pydantic import ConfigDict

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
"""Unknown keys are errors, nothing is converted ("8" is no integer), nan and inf are no settings."""
