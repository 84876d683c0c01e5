"""A sweep's jobs are all checked before the first one starts."""

import sys
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict

from grace_exp.config.compose import validate
from grace_exp.config.preflight import check_machine
from grace_exp.errors import ConfigError, GraceError


class CheckSweep(Callback):
    """Hydra's callback; without it a contradiction in the last job would show after all the others have run."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Composes and checks every job of a plain grid; other sweepers choose their jobs as they go.

        The machine is checked as well where the jobs run on it.

        Raises:
            SystemExit: With code 2, after naming every job that cannot run and why.
        """
        if not config.hydra.sweeper._target_.endswith(".BasicSweeper"):
            return
        runs_here = config.hydra.launcher._target_.endswith(".BasicLauncher")
        loader = GlobalHydra.instance().config_loader()
        given = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
        given += config.hydra.overrides.task
        overrides = OverridesParser.create(config_loader=loader).parse_overrides(given)
        failures: dict[str, list[str]] = {}
        for number, job in enumerate(BasicSweeper.split_arguments(overrides, max_batch_size=None)[0]):
            settings = loader.load_sweep_config(config, list(job))
            with open_dict(settings):
                del settings["hydra"]
                settings.run_dir = "."  # known when the job starts
            try:
                checked = validate(settings)
                if runs_here and checked.hardware.devices * checked.hardware.nodes > 1:
                    raise ConfigError(
                        "a sweep in this process cannot start runs of several processes: use "
                        "hydra/launcher=submitit_slurm, or a command for each run"
                    )
                if runs_here:
                    check_machine(checked)
            except GraceError as error:
                failures.setdefault(str(error), []).append(f"#{number} ({' '.join(job)})")
        if failures:
            for message, jobs in failures.items():
                sys.stderr.write(f"grace-exp: job {', '.join(jobs)}: {message}\n")
            sys.exit(2)
