"""The wheel is complete: settings, data, licences; and it composes where no checkout is near."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_holds_settings_data_and_licences(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    settings = {f"grace_exp/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "conf").rglob("*.yaml")}
    data = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src/grace_exp/data/wordnet").glob("*.jsonl")}
    assert settings
    assert data
    assert settings | data | {"grace_exp/data/wordnet/LICENSE", "grace_exp/py.typed"} <= names
    assert {name.rpartition("/")[2] for name in names if "dist-info/licenses/" in name} == {"LICENSE", "NOTICE"}
    assert not {name for name in names if name.startswith(("tests/", "conf/", "src/"))}


def test_installed_wheel_composes_from_any_directory(wheel: Path, tmp_path: Path) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    zipfile.ZipFile(wheel).extractall(site)
    elsewhere.mkdir()
    command = [sys.executable, "-m", "grace_exp", "+experiment=demo", "--cfg", "job"]
    environment = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "temperature:" in done.stdout
    where = subprocess.run(
        [sys.executable, "-c", "from grace_exp.config.compose import conf_dir; print(conf_dir())"],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(where.stdout.strip()) == site / "grace_exp" / "conf"
