"""The description of a recipe as an HTML page that needs no server, and as tables for the terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grace_exp.data.cleaning import REASONS
from grace_exp.tracking.atomic import atomic_path

if TYPE_CHECKING:
    from rich.console import Console

PAGE_FILE = "data_report.html"
"""Name of the page in a run folder."""


def write_page(path: Path, description: Mapping[str, Any]) -> None:
    """Write one self-contained page: no script, no request.

    Args:
        path: The HTML file.
        description: The contents of the JSON file that `job=prepare_data` writes.
    """
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    page = environment.get_template("data_page.html").render(found=description, reasons=REASONS)
    with atomic_path(path) as unfinished:
        unfinished.write_text(page, encoding="utf-8")


def print_description(console: "Console", description: Mapping[str, Any]) -> None:
    """Print a table of the sources, and why rows were left out."""
    from rich.table import Table

    table = Table(title=f"{description['instances']} instances", title_justify="left")
    for column in ("source", "usable", "rejected", "kept", "leaks", "tokens of the positive, mean (99 %)"):
        table.add_column(column, justify="left" if column == "source" else "right")
    for name, source in description["sources"].items():
        tokens = source.get("tokens", {}).get("positive")
        leaks = source.get("leaks")
        table.add_row(
            name,
            f"{source['usable']:,}",
            f"{source['rejected']:,}",
            f"{source['kept']:,}",
            "-" if leaks is None else f"{sum(leaks.values()):,}",
            "-" if tokens is None else f"{tokens['mean']:.0f} ({tokens['quantiles']['99 %']:.0f})",
        )
    console.print(table)
    for reason, count in description["rejected_by_reason"].items():
        console.print(f"  {count:,} bad rows: {reason}", highlight=False, soft_wrap=True)
    for name, source in description["sources"].items():
        for kind, note in (("dropped", "left out"), ("standard_would_drop", "data.clean=standard would leave out")):
            for reason, count in source[kind].items():
                if kind == "dropped" or reason not in source["dropped"]:
                    console.print(f"  {name}: {note} {count:,}: {REASONS[reason]}", highlight=False)
