"""Build the W&B workspace and W&B report of a run or a sweep.

Building needs no network and no login; only `publish` does. The models that W&B's library sends are private there
(`_to_model`), so its version is pinned, and tests/unit/review reads the written files back.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grace_exp.errors import MissingResourceError
from grace_exp.review.panels import Panel, panels
from grace_exp.tracking.atomic import write_text_atomic
from grace_exp.tracking.metrics import SECTIONS

FOLDER = "dashboard"
WORKSPACE_FILE = "workspace.json"
REPORT_FILE = "report.json"

_ROW = 24  # W&B's grid
_PANEL_WIDTH, _PANEL_HEIGHT = 8, 7


@dataclass(frozen=True)
class Shown:
    """The contents of a dashboard.

    Attributes:
        title: Title of workspace and report.
        project: W&B project.
        entity: Owner of the project; "" if the settings name none.
        logged: Names of the metrics that the runs logged.
        tables: Keys of the W&B tables that they logged.
        run_id: Id of a single run.
        group: W&B group of a sweep.
        verdict: Sentence at the top of the report.
        swept: Swept settings of a sweep.
        metric: Metric by which its jobs are compared.
        baseline: W&B id of the job with which the others are compared.
    """

    title: str
    project: str
    entity: str
    logged: Sequence[str]
    tables: Sequence[str] = ()
    run_id: str | None = None
    group: str | None = None
    verdict: str = ""
    swept: Sequence[str] = ()
    metric: str | None = None
    baseline: str | None = None
    summary_keys: Sequence[str] = field(default_factory=tuple)


def build_workspace(shown: Shown) -> Any:
    """Return the workspace: a section for each section of the metrics, tables, and for a sweep a comparison."""
    ws = _workspaces()

    sections = [ws.Section(name="Comparison", panels=_comparison(shown), is_open=True)] if _comparison(shown) else []
    found = panels(shown.logged)
    for section, title in SECTIONS.items():
        plots = [_line_plot(panel) for panel in found if panel.section == section]
        plots += [_table(key) for key in shown.tables if section == "rationales"]
        if plots:
            sections.append(ws.Section(name=title, panels=plots, is_open=section in ("learning", "drivers")))
    columns = [f"config:{key}.value" for key in shown.swept] + [f"summary:{key}" for key in shown.summary_keys]
    return ws.Workspace(
        entity=shown.entity,
        project=shown.project,
        name=shown.title,
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis="Step"),
        runset_settings=ws.RunsetSettings(filters=_filters(shown), baseline_run=shown.baseline, pinned_columns=columns),
    )


def build_report(shown: Shown) -> Any:
    """Return the report: the verdict, for a sweep the comparison, then a grid of panels for each section."""
    wr = _reports()

    def grid(plots: list[Any]) -> Any:
        return wr.PanelGrid(runsets=[runset], panels=_laid_out(plots))

    # Without entity and project, which would be looked up on the server; the runs are then those of the report's
    # project.
    runset = wr.Runset(name=shown.title, filters=_filters(shown))
    blocks: list[Any] = [wr.P(shown.verdict)] if shown.verdict else []
    if _comparison(shown):
        blocks += [wr.H2("Comparison"), grid(_comparison(shown))]
    found = panels(shown.logged)
    for section, title in SECTIONS.items():
        plots = [_line_plot(panel) for panel in found if panel.section == section]
        plots += [_table(key) for key in shown.tables if section == "rationales"]
        if plots:
            blocks += [wr.H2(title), grid(plots)]
    return wr.Report(project=shown.project, entity=shown.entity, title=shown.title[:128], blocks=blocks, width="fluid")


def write_specs(folder: Path, workspace: Any, report: Any) -> tuple[Path, Path]:
    """Write what W&B would get, as JSON, into `<folder>/dashboard/`."""
    paths = folder / FOLDER / WORKSPACE_FILE, folder / FOLDER / REPORT_FILE
    for path, built in zip(paths, (workspace, report), strict=True):
        # Serialised by the library, which knows its aliases; then indented for readers and version control.
        text = built._to_model().model_dump_json(by_alias=True, exclude_none=True)
        write_text_atomic(path, json.dumps(json.loads(text), indent=2, ensure_ascii=False) + "\n")
    return paths


def publish(workspace: Any, report: Any) -> tuple[str, str]:
    """Save workspace and report on W&B.

    Returns:
        Their URLs.

    Raises:
        MissingResourceError: W&B refuses or does not answer.
    """
    import wandb

    try:
        if not workspace.entity:
            workspace.entity = report.entity = wandb.Api().default_entity
        workspace.save()
        report.save()
    except Exception as error:  # errors of the HTTP client, of W&B's API, of its login
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise MissingResourceError(
            f"W&B did not take the dashboard: {reason[0]}\n"
            "It needs a network, a login (`wandb login`) and, for another team's project, logger.wandb.entity. The "
            "files are written; job.publish=false leaves it at that"
        ) from error
    return str(workspace.url), str(report.url)


def _reports() -> Any:
    """Return the library for reports and panels, without its types, which hide its exports."""
    import wandb_workspaces.reports.v2

    return wandb_workspaces.reports.v2


def _workspaces() -> Any:
    import wandb_workspaces.workspaces

    return wandb_workspaces.workspaces


def _line_plot(panel: Panel) -> Any:
    wr = _reports()

    return wr.LinePlot(
        title=panel.title,
        x="Step",
        y=list(panel.names),
        title_y=panel.unit or None,
        plot_type="stacked-area" if panel.stacked else None,
    )


def _table(key: str) -> Any:
    wr = _reports()

    return wr.WeavePanelSummaryTable(table_name=key)


def _comparison(shown: Shown) -> list[Any]:
    """Return the panels of a sweep: parallel coordinates, importance of the settings, and a comparison of the runs."""
    if not shown.swept or shown.metric is None:
        return []
    wr = _reports()

    settings = [wr.ParallelCoordinatesPlotColumn(metric=wr.Config(key)) for key in shown.swept]
    return [
        wr.ParallelCoordinatesPlot(
            title=f"{shown.metric} by setting",
            columns=[*settings, wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric(shown.metric))],
        ),
        wr.ParameterImportancePlot(with_respect_to=shown.metric),
        wr.BarPlot(title=f"{shown.metric} of each run, beside the baseline", metrics=[wr.SummaryMetric(shown.metric)]),
        wr.RunComparer(diff_only="split"),
    ]


def _filters(shown: Shown) -> str:
    if shown.group is not None:
        return f'Metric("Group") == {shown.group!r}'
    return f'Metric("ID") == {shown.run_id!r}' if shown.run_id is not None else ""


def _laid_out(plots: Sequence[Any]) -> list[Any]:
    """Return the layout: three panels per row; a table fills a row."""
    wr = _reports()

    x = y = 0
    for plot in plots:
        wide = isinstance(plot, wr.WeavePanelSummaryTable | wr.ParallelCoordinatesPlot | wr.RunComparer)
        width = _ROW if wide else _PANEL_WIDTH
        if x + width > _ROW:
            x, y = 0, y + _PANEL_HEIGHT
        plot.layout = wr.Layout(x=x, y=y, w=width, h=_PANEL_HEIGHT)
        x += width
    return list(plots)
