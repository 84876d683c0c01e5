"""The list of metric names: one entry a name, checked where metrics are logged, and a page made of it."""

from pathlib import Path

import pytest

from grace_exp.tracking.metrics import (
    METRICS,
    SECTIONS,
    UnlistedMetric,
    check_listed,
    find_metric,
    in_order,
    markdown_table,
)
from grace_exp.tracking.metrics_csv import MetricsCsv


def test_a_name_has_one_entry_and_every_entry_finds_itself() -> None:
    names = [metric.name for metric in METRICS]
    assert len(names) == len(set(names))
    for metric in METRICS:
        example = metric.name.replace("<", "a_").replace(">", "")
        assert find_metric(example) == metric, metric.name


def test_an_exact_name_comes_before_a_pattern_and_a_side_is_left_out() -> None:
    total, term = find_metric("reward/total/mean"), find_metric("query/reward/infonce/mean")
    assert total is not None and total.section == "learning"
    assert term is not None and term.name == "reward/<term>/mean"
    assert find_metric("reward/a/b/mean") is None


def test_an_unlisted_name_is_named_where_it_is_logged(tmp_path: Path) -> None:
    with pytest.raises(UnlistedMetric, match=r"train/new\..*METRICS in grace_exp/tracking/metrics.py"):
        MetricsCsv(tmp_path / "metrics.csv").log_metrics({"train/loss": 1.0, "train/new": 1.0}, 0)
    check_listed(["train/loss"])


def test_names_are_shown_in_the_order_of_the_list() -> None:
    names = ["train/loss", "reward/b/std", "new", "reward/a/std", "reward/total/mean"]
    assert in_order(names) == ["reward/total/mean", "reward/b/std", "reward/a/std", "train/loss", "new"]
    assert in_order(names, "drivers") == ["reward/b/std", "reward/a/std"]


def test_every_section_has_metrics_and_every_meaning_is_a_sentence() -> None:
    assert {metric.section for metric in METRICS} == set(SECTIONS)
    assert [metric.name for metric in METRICS if not metric.meaning.endswith(".")] == []


def test_the_page_is_up_to_date() -> None:
    page = Path(__file__).parents[3] / "docs" / "metrics.md"
    assert page.read_text(encoding="utf-8") == markdown_table(), "run: python scripts/metrics_table.py"
