"""Commands and links of README and docs work as written."""

import re
import shlex
from pathlib import Path

import pytest

from grace_exp.config.compose import compose_config

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "experiments").glob("*/README.md")])
STARTS = r"(?:[\w./-]*python -m grace_exp|make|[\w./-]*python (?:examples|experiments|benchmarks|scripts)/)"


def commands(page: Path) -> list[str]:
    """Lines of code and inline code that begin as commands do; what continues on the next line is joined."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(rf"^\s*({STARTS}.*)$", text, re.MULTILINE)
    inline = re.findall(rf"`({STARTS}[^`]*)`", text)
    return list(dict.fromkeys(line.strip().rstrip("`|").strip() for line in [*lines, *inline]))


def all_commands(pattern: str) -> list[tuple[str, str]]:
    return [(page.name, line) for page in PAGES for line in commands(page) if re.match(pattern, line)]


def words(line: str) -> list[str]:
    return shlex.split(line, comments=True)


def one_job(override: str) -> str:
    """The first value of a sweep over several."""
    key, _, value = override.partition("=")
    return f"{key}={value.split(',')[0]}" if value and value[0] not in "[{'\"" else override


@pytest.mark.parametrize(("page", "line"), all_commands(r"\S*python -m grace_exp"))
def test_commands_compose(page: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_prompt.txt").write_text("Read this.")
    arguments = words(line.split("python -m grace_exp", 1)[1].split("|")[0])
    if "--help" in arguments:
        return
    swept = "-m" in arguments
    overrides = [word for word in arguments if "=" in word or word.startswith("+")]
    overrides = [one_job(word) if swept else word for word in overrides if not word.startswith("hydra")]
    given = [re.sub(r"<[^>]*>", "x", word).replace("...", "x") for word in overrides]
    compose_config(given, tmp_path)


@pytest.mark.parametrize(
    "target", sorted({words(line)[1] for _, line in all_commands(r"make [a-z-]+(?: *$| +#|  | +[A-Z_]+=)")})
)
def test_make_targets_exist(target: str) -> None:
    assert re.search(rf"^{re.escape(target)}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("script", sorted({words(line)[1] for _, line in all_commands(r"\S*python [a-z]+/")}))
def test_scripts_exist(script: str) -> None:
    assert (ROOT / script).is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_first_screen_of_the_readme_fits_forty_lines_and_shows_what_it_must() -> None:
    first = "\n".join((ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:40])
    for shown in ("step.svg", "make demo", "demo.svg", "GraceEncoder.from_pretrained", "## What do you want to do?"):
        assert shown in first
    assert re.search(r"\d+\.\d \[\d+\.\d, \d+\.\d\]", first)


def test_the_core_in_the_readme_is_code_of_the_one_file_example() -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## The algorithm")[1]
    (core,) = re.findall(r"```python\n(.*?)```", section.split("\n## ")[0], flags=re.DOTALL)
    shown = [line.strip() for line in core.splitlines() if line.strip() != "..."]
    remaining = iter((ROOT / "examples" / "grace_in_one_file.py").read_text(encoding="utf-8").splitlines())
    assert [line for line in shown if not any(line == source.strip() for source in remaining)] == []
