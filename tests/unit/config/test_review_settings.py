"""Settings of report, dashboard and watchdog that make no sense are refused."""

from pathlib import Path

import pytest

from grace_exp.config.compose import compose_config
from grace_exp.errors import ConfigError


@pytest.mark.parametrize("job", ["report", "dashboard"])
def test_a_job_about_a_run_needs_one(job: str) -> None:
    with pytest.raises(ConfigError, match=rf"job={job} needs job\.run=<folder"):
        compose_config([f"job={job}"], Path("run"))
    one = compose_config([f"job={job}", "job.run=a"], Path("run"))
    assert one.job.run_folders == ["a"]
    assert compose_config([f"job={job}", "job.run=[a,b]"], Path("run")).job.run_folders == ["a", "b"]


def test_a_run_is_a_folder_or_folders() -> None:
    with pytest.raises(ConfigError, match=r"job\.run = 3: must be a list"):
        compose_config(["job=report", "job.run=3"], Path("run"))
    with pytest.raises(ConfigError, match=r"job\.run"):
        compose_config(["job=report", "job.run=[]"], Path("run"))


def test_a_share_is_between_0_and_1() -> None:
    with pytest.raises(ConfigError, match=r"callbacks\.watchdog\.min_rank_share = 1\.5: must be a number, more than 0"):
        compose_config(["+experiment=demo_tiny", "callbacks.watchdog.min_rank_share=1.5"], Path("run"))


def test_settings_compose_beside_a_command_that_runs(tmp_path: Path) -> None:
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from grace_exp.config.compose import conf_dir

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        running = GlobalHydra.instance().hydra
        assert compose_config(["+experiment=demo_tiny", "seed=3"], tmp_path).seed == 3
        assert GlobalHydra.instance().hydra is running
        assert compose("config", overrides=["seed=4"]).seed == 4
