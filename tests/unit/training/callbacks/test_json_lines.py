import io
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from grace_exp.config.compose import compose_config
from grace_exp.training.callbacks import json_lines
from grace_exp.training.callbacks.json_lines import JsonLines


def test_every_line_is_an_object_and_nan_is_null(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "step_module", lambda module: module)
    stream, trainer = io.StringIO(), Any
    lines = JsonLines(compose_config(["+experiment=demo_tiny"], tmp_path), stream)
    row = {"step": 0.0, "train/loss": math.nan, "reward/total/mean": 0.5}
    module: Any = SimpleNamespace(completed_steps=1, history=[row])
    lines.on_train_start(trainer, module)
    lines.on_train_batch_end(trainer, module)
    lines.write("end", figures={"a": math.inf})
    start, step, end = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (start["event"], start["name"], start["steps"]) == ("start", "demo_tiny", 5)
    assert step["metrics"] == {"train/loss": None, "reward/total/mean": 0.5} and step["step"] == 1
    assert end == {"event": "end", "figures": {"a": None}}
