"""The command line: compose, check, run the chosen job."""

import os
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from grace_exp.config.compose import conf_dir, validate
from grace_exp.config.explain import unknown_key
from grace_exp.config.preflight import check_machine
from grace_exp.errors import GraceError
from grace_exp.jobs import run

_EXIT_CODE = 2

# Read when torch starts its threads. Spinning ones (the default) turn every short product into a wait for a thread that
# another program has pushed aside: on a busy 2-core machine steps took up to ten times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


class _JobFailed(CompactHydraException):
    """A job of a sweep failed with a message for the user; Hydra shows it without a traceback after the other jobs."""


def run_job(settings: DictConfig) -> dict[str, float] | float | None:
    """Hydra's task. A `GraceError` ends a single run at once; a sweep goes on with other jobs and fails at its end."""
    try:
        config = validate(settings)
        check_machine(config)
        return run(config)
    except GraceError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        sys.stderr.write(f"grace-exp: {error}\n")
        if HydraConfig.get().mode is RunMode.MULTIRUN:
            raise _JobFailed(f"grace-exp: {error}") from error
        sys.exit(_EXIT_CODE)


def main() -> None:
    """Entry point of `python -m grace_exp` and `grace-exp`; exits with 2 after an error that the user can mend."""
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(run_job)()
    except SystemExit as stop:
        failure = stop.__context__  # Hydra has shown it already
        if isinstance(failure, _JobFailed):
            sys.exit(_EXIT_CODE)
        if isinstance(failure, CompactHydraException) and isinstance(failure.__cause__, OmegaConfBaseException):
            hint = unknown_key((failure.__cause__.full_key or "").split("."))
            if hint:
                sys.stderr.write(f"grace-exp: {failure.__cause__.full_key}: {hint}\n")
                sys.exit(_EXIT_CODE)
        raise


if __name__ == "__main__":
    main()
