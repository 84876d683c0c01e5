"""A SLURM allocation without srun: this process is alone."""

import pytest
from lightning.pytorch.plugins.environments import SLURMEnvironment

from grace_exp.config.hardware import HardwareConfig
from grace_exp.training.trainer import build_trainer


@pytest.mark.parametrize(
    ("variables", "slurm"),
    [({}, False), ({"SLURM_PROCID": "0"}, False), ({"SLURM_PROCID": "0", "SLURM_STEP_ID": "0"}, True)],
    ids=["salloc", "batch script", "srun"],
)
def test_processes_are_slurms_only_where_srun_started_them(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], slurm: bool
) -> None:
    for name in ("SLURM_PROCID", "SLURM_JOB_NAME", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"SLURM_NTASKS": "1" if slurm else "2", "SLURM_JOB_ID": "1", **variables}.items():
        monkeypatch.setenv(name, value)
    trainer = build_trainer(HardwareConfig(name="cpu"), steps=1, loggers=[], callbacks=[])
    environment = trainer._accelerator_connector.cluster_environment
    assert isinstance(environment, SLURMEnvironment) is slurm
