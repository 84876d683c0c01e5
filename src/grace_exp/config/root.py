"""The whole configuration, checked."""

from typing import Self

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from grace_exp.config.base import STRICT
from grace_exp.config.groups import Groups
from grace_exp.config.require import requirements
from grace_exp.config.rules import RULES


@dataclass(config=STRICT, frozen=True, kw_only=True)
class GraceConfig(Groups):
    """The settings of a run; the rules between groups hold."""

    @model_validator(mode="after")
    def _groups_agree(self) -> Self:
        with requirements() as require:
            for rule in RULES:
                rule(self, require)
        return self
