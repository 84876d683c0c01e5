"""The HTML report in headless Chromium: no error, no request, the numbers of the files, keys, contrast."""

import itertools
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from grace_exp.review.html_report import write_report

SECTIONS = [
    "verdict", "warnings", "drivers", "curves", "before-after", "groups", "rationales", "time", "evaluation",
    "configuration", "provenance",
]  # fmt: skip
MOST_BYTES = 2_000_000
CONTRAST = """
(() => {
  const parse = (text) => {
    const numbers = text.match(/[\\d.e-]+/g).map(Number);
    return text.startsWith("color(srgb") ? numbers.map((n, i) => i < 3 ? n * 255 : n) : numbers;
  };
  const light = ([r, g, b]) => [r, g, b].map((v) => (v /= 255, v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    if (node.classList.contains("in")) return parse(getComputedStyle(node.previousElementSibling).fill);
    for (let at = node; at; at = at.parentElement) {
      const color = parse(getComputedStyle(at).backgroundColor);
      if (color.length < 4 || color[3] > 0) return color;
    }
    return parse(getComputedStyle(document.documentElement).backgroundColor);
  };
  const bad = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !node.checkVisibility()) continue;
    if (["SCRIPT", "STYLE"].includes(node.tagName)) continue;
    const style = getComputedStyle(node);
    const front = parse(node instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [light(front), light(behind(node))].sort((x, y) => y - x);
    const large = parseFloat(style.fontSize) >= 24;
    const name = `${node.tagName} ${node.getAttribute("class")} ${node.textContent.slice(0, 30)}`;
    if ((a + 0.05) / (b + 0.05) < (large ? 3 : 4.5)) bad.push(name);
  }
  return bad;
})()
"""
UNNAMED = """
[...document.querySelectorAll("svg[role=img], button, input, a, [role=region]")]
  .filter((node) => !(node.getAttribute("aria-label") || node.textContent.trim() || node.closest("label")))
  .map((node) => node.outerHTML.slice(0, 80))
"""
FOCUSABLE = """[...document.querySelectorAll("a[href], button, input, summary, [tabindex='0']")]
  .filter((node) => node.checkVisibility())"""


@pytest.fixture(scope="session")
def run(train: Any) -> Path:
    settings = [
        "evaluation=demo", "evaluation.sets.wordnet.size=12", "evaluation.sets.stsb.size=12", "evaluation.minilm=false",
        "logger.samples_every_n_steps=1", "logger.evolution_every_n_steps=2", "callbacks.report=true",
    ]  # fmt: skip
    return train(*settings).path


def clean(browser: Any, page: Path) -> None:
    assert browser.complaints == []
    assert browser.requests == [page.resolve().as_uri()]
    assert page.stat().st_size < MOST_BYTES


def test_the_page_of_a_run_has_every_section_and_asks_for_nothing(browser: Any, run: Path) -> None:
    page = run / "report.html"
    browser.look()
    browser.open(page)
    clean(browser, page)
    found = browser.run("[...document.querySelectorAll('main > section')].map((s) => s.id)")
    assert found == SECTIONS
    levels = browser.run("[...document.querySelectorAll('h1, h2, h3')].map((h) => Number(h.tagName[1]))")
    assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in itertools.pairwise(levels))
    policy = browser.run("document.querySelector('meta[http-equiv]').content")
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    # The policy holds: an image is refused.
    image = "data:image/gif;base64,R0lGODlhAQABAAAAACw="
    browser.run(f"new Promise((done) => {{ const i = new Image(); i.onerror = () => done(1); i.src = '{image}'; }})")
    assert any("Content Security Policy" in text for text in browser.complaints)


def test_the_numbers_are_those_of_the_files(browser: Any, run: Path) -> None:
    browser.open(run / "report.html")
    summary = json.loads((run / "summary.json").read_text())
    rows = browser.run(
        "[...document.querySelectorAll('#evaluation table:first-of-type tbody tr')]"
        ".map((row) => [...row.cells].map((cell) => cell.dataset.value ?? cell.textContent))"
    )
    titles = {"before": "rationale, before training", "after": "rationale, after training", "rise": "rise"}
    shown = {(row[0], row[1]): [float(value) for value in row[2:]] for row in rows}
    for name, figures in summary["heldout"].items():
        for key, title in titles.items():
            assert shown[name, title] == [figures[key][part] for part in ("value", "low", "high")]
    seconds = browser.run(
        "[...document.querySelectorAll('#time tbody tr')]"
        ".map((row) => [row.cells[0].textContent, row.cells[1].dataset.value])"
    )
    assert {name: float(value) for name, value in seconds}["step"] == summary["seconds"]["step"]

    metrics = pd.read_csv(run / "metrics.csv")
    charts = browser.run("[...document.querySelectorAll('svg.chart')].map((svg) => JSON.parse(svg.dataset.chart))")
    drawn = {name: values for chart in charts for name, values in chart["series"].items()}
    assert set(drawn) == set(metrics) - {"step"}
    for name, values in drawn.items():
        expected = [None if pd.isna(value) else pytest.approx(value, rel=1e-6) for value in metrics[name]]
        assert values == expected, name
    last = browser.run("document.querySelector('[data-series=\\'reward/total/mean\\'] .value').dataset.value")
    assert float(last) == metrics["reward/total/mean"].iloc[-1]


def test_the_twin_has_every_number_of_the_page(run: Path) -> None:
    class Values(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.found: list[str] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.found += [value for name, value in attrs if name == "data-value" and value]

    values = Values()
    values.feed((run / "report.html").read_text())

    def numbers(part: Any) -> set[float]:
        if isinstance(part, dict | list):
            return set().union(*map(numbers, part.values() if isinstance(part, dict) else part))
        return {float(part)} if isinstance(part, int | float) and not isinstance(part, bool) else set()

    twin = numbers(json.loads((run / "report.json").read_text()))
    assert len(values.found) > 100 and {float(value) for value in values.found} <= twin


def test_the_page_is_used_with_keys_alone(browser: Any, run: Path) -> None:
    browser.open(run / "report.html")
    focusable = browser.run(f"{FOCUSABLE}.length")
    order = []
    for _ in range(focusable):
        browser.press("Tab", 9)
        order.append(browser.run(f"{FOCUSABLE}.indexOf(document.activeElement)"))
    assert order == list(range(focusable))  # as on the page, nothing left out, no trap
    outline = browser.run(
        "document.querySelector('svg.chart').focus(); getComputedStyle(document.activeElement).outlineStyle"
    )
    assert outline == "solid"
    browser.press("Home", 36)
    browser.press("ArrowRight", 39)
    at, value = browser.run(
        "(() => { const f = document.activeElement.closest('figure'); return [f.querySelector('.at').textContent, "
        "[...f.querySelectorAll('[data-series]')].map((line) => "
        "[line.dataset.series, line.querySelector('.value').textContent])]; })()"
    )
    metrics = pd.read_csv(run / "metrics.csv")
    assert at == "step 1"
    assert {name: float(text) for name, text in value} == {
        name: pytest.approx(metrics[name][1], rel=1e-3) for name, _ in value
    }
    everywhere = browser.run("[...document.querySelectorAll('.at')].every((node) => node.textContent === 'step 1')")
    assert everywhere
    browser.press("Escape", 27)
    assert browser.run("document.querySelector('.at').textContent") == "last step"


# The children of a diagram whose texts lie over each other.
OVERLAPS = """
[...document.querySelectorAll("svg.map")].flatMap((svg) => {
  const boxes = [...svg.querySelectorAll("text")].map((text) => [text.textContent, text.getBoundingClientRect()]);
  const apart = (a, b) => a.right <= b.left || b.right <= a.left || a.bottom <= b.top || b.bottom <= a.top;
  return boxes.flatMap(([name, box], i) => boxes.slice(i + 1).filter(([, other]) => !apart(box, other))
    .map(([other]) => `${name} | ${other}`));
})
"""
ROWS = """
[...document.querySelectorAll("#jobs tbody tr")].filter((row) => row.checkVisibility())
  .map((row) => [...row.cells].map((cell) => cell.dataset.value ?? cell.textContent))
"""


@pytest.fixture(scope="session")
def swept(sweep_of_25: Any) -> Path:
    page, skipped = write_report([sweep_of_25[0]], sweep_of_25[0])
    assert skipped == []
    return page


@pytest.fixture(scope="session")
def several(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("several")
    other = place / "other"
    shutil.copytree(run, other)
    settings = yaml.safe_load((other / "config.yaml").read_text())
    settings["seed"] = 7
    (other / "config.yaml").write_text(yaml.safe_dump(settings))
    page, skipped = write_report([run, other], place)
    assert skipped == []
    return page


def test_the_page_of_a_sweep_shows_every_job_sorts_and_filters(browser: Any, swept: Path, sweep_of_25: Any) -> None:
    _, values, figures = sweep_of_25
    browser.look()
    browser.open(swept)
    clean(browser, swept)
    sections = browser.run("[...document.querySelectorAll('main > section')].map((s) => s.id)")
    assert sections == ["verdict", "failed", "map", "ways", "jobs"]
    best = max(range(25), key=lambda job: figures[job] or 0.0)
    words = browser.run("document.querySelector('.verdict').textContent")
    assert f"{figures[best]:.4g}" in words
    failed = browser.run("document.querySelector('#failed').textContent")
    assert "consistency.weight-0.3_hard_negative.weight-0.5" in failed and "<b>out of memory</b>" in failed
    cells = browser.run("[...document.querySelectorAll('#map text.in')].map((text) => Number(text.textContent))")
    assert cells == [pytest.approx(value, rel=1e-3) for value in figures if value is not None]
    assert browser.run("document.querySelectorAll('#ways .way').length") == 24
    rows = browser.run(ROWS)
    assert [row[1:3] for row in rows] == [[a, b] for a in values for b in values]

    column = browser.run(
        "[...document.querySelectorAll('#jobs th')].findIndex((th) => th.textContent === 'val/stsb/rationale')"
    )
    button = f"document.querySelectorAll('#jobs th')[{column}].querySelector('button').click()"
    for wanted in ("descending", "ascending"):
        browser.run(button)
        assert browser.run(f"document.querySelectorAll('#jobs th')[{column}].getAttribute('aria-sort')") == wanted
        shown = [float(row[column]) for row in browser.run(ROWS) if row[column] not in ("", "none")]
        assert shown == sorted(shown, reverse=wanted == "descending") and len(shown) == 24
    browser.run(
        "(() => { const f = document.querySelector('#filter'); f.value = 'failed'; "
        "f.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )
    (only,) = browser.run(ROWS)
    assert only[0] == "7" and only[-1] == "failed"
    assert "1" in browser.run("document.querySelector('#shown').textContent")


def test_the_page_of_several_runs_has_their_differences_first(browser: Any, several: Path) -> None:
    browser.look()
    browser.open(several)
    clean(browser, several)
    sections = browser.run("[...document.querySelectorAll('main > section')].map((s) => s.id)")
    wanted = ["differences", "verdict", "warnings", "evaluation", "learning", "drivers", "rationales", "time"]
    assert sections == wanted
    rows = browser.run(
        "[...document.querySelectorAll('#differences tr')].map((row) => [...row.cells].map((c) => c.textContent))"
    )
    assert ["seed", "0", "7"] in rows
    charts = browser.run("[...document.querySelectorAll('svg.chart')].map((svg) => JSON.parse(svg.dataset.chart))")
    assert charts and all(len(chart["series"]) <= 2 for chart in charts)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_texts_stand_out_have_names_and_fit(
    browser: Any, run: Path, swept: Path, several: Path, width: int, scheme: str, tmp_path: Path
) -> None:
    for page in (run / "report.html", swept, several):
        browser.look(width=width, scheme=scheme)
        browser.open(page)
        _check_texts(browser, width, tmp_path)


def _check_texts(browser: Any, width: int, tmp_path: Path) -> None:
    browser.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert browser.run(CONTRAST) == []
    assert browser.run(UNNAMED) == []
    assert browser.run(OVERLAPS) == []
    assert browser.run("document.documentElement.scrollWidth") <= width
    browser.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000
