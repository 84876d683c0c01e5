"""The rules between groups of settings, one function a subject.

A rule states a requirement: `require(batch % mini_batch == 0, "job.batch_size=6 is not a multiple of ...")`. Its
message names the key, the value, the allowed values, and the override that mends it.
"""

from collections.abc import Callable

from grace_exp.config.groups import Groups
from grace_exp.config.require import Require
from grace_exp.config.rules.engine_rules import engine_rules
from grace_exp.config.rules.job_rules import job_rules
from grace_exp.config.rules.machine_rules import machine_rules
from grace_exp.config.rules.measuring_rules import measuring_rules
from grace_exp.config.rules.method_rules import method_rules
from grace_exp.config.rules.overlap_rules import overlap_rules
from grace_exp.config.rules.pathwise_rules import pathwise_rules
from grace_exp.config.rules.reward_rules import reward_rules
from grace_exp.config.rules.size_rules import size_rules

RULES: tuple[Callable[[Groups, Require], None], ...] = (
    size_rules,
    machine_rules,
    measuring_rules,
    job_rules,
    engine_rules,
    overlap_rules,
    method_rules,
    reward_rules,
    pathwise_rules,
)
