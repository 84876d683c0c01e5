import csv
import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from grace_exp.evaluation.general.general_results import (
    GeneralResults,
    TaskFigure,
    metrics,
    probe_table,
    task_table,
    write_general,
)
from grace_exp.evaluation.general.probe import ProbeResult


def _figure(value: float) -> TaskFigure:
    return TaskFigure("gsm8k", "exact_match (strict-match)", value, 0.01, 5, 1319, {"exact_match,strict-match": value})


RESULTS = GeneralResults(
    tasks={"base": [_figure(0.6)], "trained": [_figure(0.62)]},
    probe={
        "glosses": ProbeResult(
            [3, 1],
            {"base": [4 * math.log(20), 0.0], "trained": [4 * math.log(30), 0.0]},
            {("base", "trained"): [1.0, 1.0], ("trained", "base"): [2.0, 4.0]},
        )
    },
    skipped={"humaneval": "runs code"},
)


def test_figures_are_means_over_tokens_not_over_texts() -> None:
    assert metrics(RESULTS) == pytest.approx(
        {
            "general/gsm8k/base": 0.6,
            "general/gsm8k/trained": 0.62,
            "general/glosses/perplexity_base": 20,
            "general/glosses/perplexity_trained": 30,
            "general/glosses/kl_base_trained": 0.5,
            "general/glosses/kl_trained_base": 1.5,
        }
    )


def test_tables_show_both_sides_the_difference_and_what_was_left_out() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(task_table(RESULTS), probe_table(RESULTS))
    shown = console.export_text()
    for part in ("0.6000 ± 0.0100", "+0.0200", "not run: runs code", "trained || base", "20.00", "1.5"):
        assert part in shown


def test_the_files_hold_every_figure_and_the_sums_to_resample_from(tmp_path: Path) -> None:
    write_general(tmp_path, RESULTS, {"weights": {"base": "tiny"}})
    stored = json.loads((tmp_path / "general.json").read_text())
    assert stored["tasks"]["trained"]["gsm8k"]["value"] == 0.62 and stored["weights"] == {"base": "tiny"}
    assert stored["probe"]["glosses"]["sums_per_text"]["kl"]["trained || base"] == [2.0, 4.0]
    with (tmp_path / "general.csv").open() as stream:
        rows = [(row["name"], row["metric"], row["side"]) for row in csv.DictReader(stream)]
    assert rows == [
        ("gsm8k", "exact_match (strict-match)", "base"),
        ("gsm8k", "exact_match (strict-match)", "trained"),
        ("glosses", "perplexity", "base"),
        ("glosses", "perplexity", "trained"),
        ("glosses", "kl", "base || trained"),
        ("glosses", "kl", "trained || base"),
    ]
