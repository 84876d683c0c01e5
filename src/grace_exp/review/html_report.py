"""The HTML report: one page that needs no server, and a JSON file with every number on it.

The page makes no request: its Content-Security-Policy allows only its own style and script, by their hashes.
"""

import base64
import hashlib
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from grace_exp.review.charts import heat_map, line_chart, parallel_coordinates
from grace_exp.review.comparison_page import comparison_page
from grace_exp.review.run_files import RunFiles, UnreadableRun, is_sweep, read_run
from grace_exp.review.run_page import run_page
from grace_exp.review.sweep_page import sweep_page
from grace_exp.tracking.atomic import write_text_atomic
from grace_exp.tracking.summary import write_json_atomic

PAGE_FILE = "report.html"
TWIN_FILE = "report.json"

_TEMPLATES = Path(__file__).parent / "templates"


def write_report(folders: Sequence[Path], out_dir: Path) -> tuple[Path, list[str]]:
    """Write `report.html` and `report.json` about runs or a sweep.

    A single run gets its own page, several runs are compared side by side, and a sweep is shown as a table. A folder
    without a run, or with a broken one, is left out and named on the page.

    Args:
        folders: Folders of runs; a single one may be that of a sweep.
        out_dir: The folder for the files.

    Returns:
        The page, and a line about each folder that was left out.

    Raises:
        UnreadableRun: No folder can be read.
    """
    page, skipped = _page(folders)
    page["skipped"] = skipped
    write_json_atomic(out_dir / TWIN_FILE, page)
    write_text_atomic(out_dir / PAGE_FILE, render(page))
    return out_dir / PAGE_FILE, skipped


def _page(folders: Sequence[Path]) -> tuple[dict[str, Any], list[str]]:
    if len(folders) == 1 and is_sweep(folders[0]):
        return sweep_page(folders[0]), []
    runs: list[RunFiles] = []
    skipped: list[str] = []
    for folder in folders:
        try:
            run = read_run(folder)
            _ = run.samples, run.evolution  # read here, so that a broken file leaves the run out
            runs.append(run)
        except UnreadableRun as error:
            skipped.append(str(error))
    if not runs:
        raise UnreadableRun("there is nothing to report:\n  " + "\n  ".join(skipped))
    page = run_page(runs[0]) if len(folders) == 1 else comparison_page(runs)
    return page, skipped


def render(page: dict[str, Any]) -> str:
    """Return the HTML page for the data of `run_page`, `comparison_page` or `sweep_page`."""
    style, script = (_TEMPLATES / "report.css").read_text("utf-8"), (_TEMPLATES / "report.js").read_text("utf-8")
    policy = f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    return str(
        _environment()
        .get_template(f"{page['kind']}.html.j2")
        .render(page=page, style=style, script=script, policy=policy)
    )


@cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"figure": figure, "setting": _setting}
    environment.globals |= {"line_chart": line_chart, "heat_map": _heat_map, "parallel_coordinates": _parallel}
    return environment


def figure(value: float | None, digits: int = 4) -> str:
    """Return a number as the page shows it; the JSON file has its exact value."""
    if value is None or not math.isfinite(value):
        return "none"
    return f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:,.0f}"


def _setting(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _heat_map(cells: dict[str, Any], label: str) -> str:
    values = {(cell["row"], cell["column"]): cell["value"] for cell in cells["values"]}
    return heat_map(cells["rows"], cells["columns"], values, label)


def _parallel(page: dict[str, Any], label: str) -> str:
    axes = {name: [job["swept"][key] for job in page["jobs"]] for key, name in page["keys"].items()}
    axes[page["metric"]] = [job["figures"].get(page["metric"]) for job in page["jobs"]]
    return parallel_coordinates(axes, label)
