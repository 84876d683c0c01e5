"""With `callbacks.progress=json` stdout has only JSON lines, whatever libraries print."""

import json
import subprocess
import sys
from pathlib import Path

TERM = """
import os, subprocess, sys
print("[INFO] printed while importing")
def term(inputs):
    print("printed by Python")
    os.write(1, b"written by C\\n")
    subprocess.run([sys.executable, "-S", "-c", "print('printed by a child')"], check=True)
    return inputs.rollouts_to_own_anchors_GKA.mean(-1)
"""


def test_standard_output_holds_json_lines_only(tmp_path: Path, small: list[str]) -> None:
    (tmp_path / "terms.py").write_text(TERM)
    command = [sys.executable, "-m", "grace_exp", *small, "job.steps=2", "hydra.run.dir=run"]
    command[command.index("callbacks.progress=none")] = "callbacks.progress=json"
    command += ["reward.terms.custom={path: terms.py, name: term, weight: 0.5}", "hardware=auto"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["event"] for row in found if row["event"] != "warning"] == ["start", "step", "step", "end"]
    for words in ("[INFO] printed while importing", "printed by Python", "written by C", "printed by a child"):
        assert words in done.stderr
