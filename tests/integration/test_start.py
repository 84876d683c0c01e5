"""A run imports nothing that it does not use, and late imports give the real module when it is used."""

import json
import subprocess
import sys
from pathlib import Path

CODE = """
import gc, json, sys
sys.argv = ["grace_exp", *sys.argv[1:]]
import grace_exp.__main__
grace_exp.__main__.main()
late = ["scipy.signal", "scipy.stats", "matplotlib", "torchmetrics.functional", "sklearn.base", "wandb", "vllm", "mteb"]
loaded = [name for name in late if name in sys.modules]
collects = gc.isenabled()

import importlib.metadata
import numpy, torch, torchmetrics
import scipy.optimize, sklearn, sklearn.metrics
from transformers.generation import candidate_generator
from transformers.loss import loss_for_object_detection
metric_class = torchmetrics.Metric
y, p = numpy.array([0, 1, 0, 1]), numpy.array([0.1, 0.4, 0.45, 0.8])
stand_in, assign = candidate_generator.roc_curve, loss_for_object_detection.linear_sum_assignment
by_stand_in = [list(map(float, part)) for part in stand_in(y, p)]
rows, columns = assign(numpy.array([[4, 1], [2, 8]]))
accuracy = torchmetrics.Accuracy(task="binary")
from sklearn.linear_model import RidgeCV
fit = RidgeCV().fit(numpy.arange(6.0)[:, None], numpy.arange(6.0) * 2)
print(json.dumps({
    "loaded": loaded, "collects": collects,
    "same": isinstance(accuracy, metric_class) and torchmetrics.Metric is metric_class,
    "version": torchmetrics.__version__ == importlib.metadata.version("torchmetrics"),
    "accuracy": float(accuracy(torch.tensor([0.9, 0.2]), torch.tensor([1, 1]))),
    "roc": [by_stand_in, [list(map(float, part)) for part in sklearn.metrics.roc_curve(y, p)]],
    "is_real": sklearn.metrics.roc_curve is not stand_in and scipy.optimize.linear_sum_assignment is not assign,
    "assigned": columns.tolist(), "slope": round(float(fit.coef_[0]), 2),
    "types": [type(module).__name__ for module in (torchmetrics, sklearn.metrics, scipy.optimize)],
}))
"""


def test_a_run_loads_nothing_that_it_does_not_use_and_what_is_late_is_whole(tmp_path: Path) -> None:
    overrides = ["+experiment=demo_tiny", "job.steps=1", f"hydra.run.dir={tmp_path}/run"]
    done = subprocess.run([sys.executable, "-c", CODE, *overrides], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout.splitlines()[-1])
    assert (tmp_path / "run" / "report.html").is_file()
    assert found["loaded"] == [] and found["collects"]
    assert found["same"] and found["version"] and found["accuracy"] == 0.5
    first, second = found["roc"]
    assert first == second and found["is_real"]
    assert found["assigned"] == [1, 0] and abs(found["slope"] - 2) < 0.1
    assert found["types"] == ["module"] * 3
