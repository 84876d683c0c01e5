"""A short form of scripts/chaos.py: killed runs, resumed until they end, equal the undisturbed run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import grace_exp

ROOT = Path(__file__).parents[2]


def test_killed_runs_end_as_the_undisturbed_one(tmp_path: Path) -> None:
    sources = str(Path(grace_exp.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([sources, os.environ.get("PYTHONPATH", "")])}
    arguments = ["--kills", "3", "--kinds", "lora", "--only", "SIGKILL", "SIGTERM", "--json", str(tmp_path / "cases")]
    command = [sys.executable, str(ROOT / "scripts" / "chaos.py"), *arguments, "--place", str(tmp_path / "place")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    cases = json.loads((tmp_path / "cases").read_text())["cases"]
    assert sum(case["kills"] for case in cases) >= 3
    assert all(case["ended"] and not case["differences"] for case in cases)
