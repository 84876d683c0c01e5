"""Every logged metric is in one panel, and no panel is without a logged metric."""

from grace_exp.review.charts import line_chart, thinned, ticks
from grace_exp.review.panels import panels
from grace_exp.review.word_diff import word_diff
from grace_exp.tracking.metrics import METRICS, SECTIONS

EVERYTHING = [metric.name.replace("<", "a_").replace(">", "") for metric in METRICS]


def test_every_logged_metric_is_shown_once_in_the_order_of_the_sections() -> None:
    logged = [*EVERYTHING, "query/reward/infonce/mean"]
    found = panels(logged)
    shown = [name for panel in found for name in panel.names]
    assert sorted(shown) == sorted(logged)
    sections = [panel.section for panel in found]
    assert sections == sorted(sections, key=list(SECTIONS).index)


def test_a_panel_has_only_what_was_logged() -> None:
    (panel,) = panels(["embed/cos_pos", "embed/cos_random"])
    assert panel.title == "Cosines" and panel.names == ("embed/cos_pos", "embed/cos_random")
    assert panel.unit == "cosine" and panel.better == ""
    assert panels([]) == []


def test_phases_of_a_step_are_stacked() -> None:
    stacked = [panel for panel in panels(EVERYTHING) if panel.stacked]
    assert [panel.names for panel in stacked] == [
        ("time/rollout", "time/score", "time/reward", "time/update", "time/sync")
    ]
    drawn = line_chart([0, 1], {"time/rollout": [1.0, 2.0], "time/score": [3.0, 4.0]}, label="", stacked=True)
    assert drawn.count("<polygon") == 2


def test_a_series_that_was_measured_at_some_steps_shows_where() -> None:
    drawn = line_chart([0, 1, 2], {"val/s/rationale": [1.0, None, 2.0]}, label="x")
    assert drawn.count("<circle") == 2 and drawn.count("<polyline") == 1
    assert line_chart([0], {"a": [None]}, label="x") == ""


def test_thinning_keeps_means() -> None:
    steps, series = thinned(range(1000), {"a": [float(step) for step in range(1000)], "b": [None] * 1000})
    assert len(steps) == 334 and series["a"][0] == 1.0 == steps[0] and series["b"][0] is None


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1.0]
    assert all(-3 <= value <= 17 for value in ticks(-3, 17)) and len(ticks(-3, 17)) == 4


def test_words_that_changed_are_marked() -> None:
    assert word_diff("a red fox ran", "a red dog ran fast") == [
        ("same", "a red"),
        ("removed", "fox"),
        ("added", "dog"),
        ("same", "ran"),
        ("added", "fast"),
    ]
