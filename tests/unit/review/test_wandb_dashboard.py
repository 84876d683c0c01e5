"""The W&B workspace and report are built without network or login, and read back as they were built."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces.reports.v2 import internal as report_models
from wandb_workspaces.workspaces import internal as workspace_models

from grace_exp.errors import MissingResourceError
from grace_exp.review.wandb_dashboard import Shown, build_report, build_workspace, publish, write_specs

LOGGED = ["reward/total/mean", "embed/cos_pos", "embed/cos_random", "time/rollout", "time/score", "train/loss"]
RUN = Shown(title="demo, seed 0", project="p", entity="e", logged=LOGGED, tables=["samples/rollouts"], run_id="abc")
SWEEP = Shown(
    title="Sweep s",
    project="p",
    entity="",
    logged=LOGGED,
    group="s",
    verdict="Best: a=1.",
    swept=["optim.learning_rate", "seed"],
    metric="val/stsb/rationale",
    baseline="abc",
    summary_keys=["val/stsb/rationale"],
)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def plots(spec: Any) -> list[list[str]]:
    """Metrics of every line plot in a specification."""
    if isinstance(spec, dict):
        own = [spec["config"]["metrics"]] if spec.get("viewType") == "Run History Line Plot" else []
        return own + [found for part in spec.values() for found in plots(part)]
    return [found for part in spec for found in plots(part)] if isinstance(spec, list) else []


def tables(spec: Any) -> list[str]:
    """Keys of every table in a specification."""
    text = json.dumps(spec)
    return [key for key in ("samples/rollouts", "samples/evolution") if f'"{key}"' in text]


@pytest.mark.parametrize("shown", [RUN, SWEEP], ids=["run", "sweep"])
def test_what_is_written_reads_back_as_what_was_built(shown: Shown, tmp_path: Path) -> None:
    workspace, report = build_workspace(shown), build_report(shown)
    paths = write_specs(tmp_path, workspace, report)
    assert [str(path.relative_to(tmp_path)) for path in paths] == ["dashboard/workspace.json", "dashboard/report.json"]
    view = workspace_models.View.model_validate_json(paths[0].read_text())
    again = ws.Workspace._from_model(view)
    assert (again.name, again.project, again.entity) == (shown.title, "p", shown.entity)
    assert [(s.name, len(s.panels)) for s in again.sections] == [(s.name, len(s.panels)) for s in workspace.sections]
    assert again.runset_settings.filters == workspace.runset_settings.filters
    assert again.runset_settings.baseline_run == shown.baseline
    read = wr.Report._from_model(report_models.ReportViewspec.model_validate_json(paths[1].read_text()))
    assert read.title == shown.title
    assert [_kind(block) for block in read.blocks] == [_kind(block) for block in report.blocks]
    # And the models themselves, tables included, which the library reads as panels of no certain kind.
    sent = [json.loads(part._to_model().model_dump_json(by_alias=True, exclude_none=True)) for part in (again, read)]
    for path, model in zip(paths, sent, strict=True):
        written = json.loads(path.read_text())
        assert sorted(plots(model)) == sorted(plots(written)) != []
        assert tables(model) == tables(written) == list(shown.tables)


@pytest.mark.parametrize("shown", [RUN, SWEEP], ids=["run", "sweep"])
def test_every_panel_shows_logged_metrics_and_every_logged_metric_has_a_panel(shown: Shown, tmp_path: Path) -> None:
    for path in write_specs(tmp_path, build_workspace(shown), build_report(shown)):
        found = plots(json.loads(path.read_text()))
        assert all(found) and sorted(name for names in found for name in names) == sorted(LOGGED)


def test_a_sweep_is_compared(tmp_path: Path) -> None:
    workspace, report = (
        path.read_text() for path in write_specs(tmp_path, build_workspace(SWEEP), build_report(SWEEP))
    )
    for kind in ("Parallel Coordinates Plot", "Parameter Importance", "Run Comparer"):
        assert kind in workspace and kind in report
    assert "Best: a=1." in report
    assert all("Parallel" not in json.dumps(section.name) for section in build_workspace(RUN).sections)


def test_publishing_without_a_server_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, report = build_workspace(RUN), build_report(RUN)

    def refuse(self: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(ws.Workspace, "save", refuse)
    with pytest.raises(MissingResourceError, match=r"no route[\s\S]*wandb login[\s\S]*job\.publish=false"):
        publish(workspace, report)


def _kind(block: Any) -> tuple[str, Any]:
    return type(block).__name__, getattr(block, "text", None)
