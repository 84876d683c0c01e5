import multiprocessing
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from grace_exp.errors import ConfigError
from grace_exp.tracking.run_folder import claimed, own_folder, stored_config


def test_a_folder_is_refused_while_another_has_it_and_free_when_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from grace_exp.tracking.run_folder import claimed\n"
        "with claimed(Path(sys.argv[1]), 'train'):\n    print('mine', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "mine\n"
        with pytest.raises(ConfigError, match=rf"is in use by process {other.pid} on "), claimed(tmp_path, "train"):
            pass
    finally:
        other.send_signal(signal.SIGKILL)
        other.communicate()
    (tmp_path / "checkpoints").mkdir()
    left = tmp_path / "checkpoints" / ".step-000001.ckpt.123.tmp"
    left.touch()
    with claimed(tmp_path, "train"):
        assert not left.exists()  # of the killed process
    with claimed(tmp_path, "train"):
        pass


def test_a_run_is_not_written_over_by_another_job(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("job:\n  name: train\n")
    assert stored_config(tmp_path) == {"job": {"name": "train"}}
    match = "holds a run of job=train, whose records job=evaluate would replace"
    with pytest.raises(ConfigError, match=match), claimed(tmp_path, "evaluate"):
        pass
    with claimed(tmp_path, "train"):
        pass


def _race(wanted: str, start: float) -> str:
    time.sleep(max(0, start - time.time()))
    return own_folder(wanted)


def test_each_of_many_that_start_at_once_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    wanted, start = str(tmp_path / "runs" / "demo" / "now_seed0"), time.time() + 0.3
    with multiprocessing.get_context("fork").Pool(8) as pool:
        found = pool.starmap(_race, [(wanted, start)] * 8)
    assert len(set(found)) == 8 and wanted in found
    assert sorted(map(str, (tmp_path / "runs" / "demo").iterdir())) == sorted(found)
