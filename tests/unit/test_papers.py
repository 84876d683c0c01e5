import re
import shlex
from pathlib import Path

import pytest
import yaml

from grace_exp.config.compose import compose_config

ROOT = Path(__file__).parents[2]
PAPERS = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
ROWS = [line for line in PAPERS.splitlines() if line.startswith("|")]
CONFIGURATIONS = sorted({code for row in ROWS for code in re.findall(r"`([^`]*=[^`]*)`", row)})


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_a_configuration_of_a_paper_composes(configuration: str, tmp_path: Path) -> None:
    overrides = [configuration] if "{" in configuration else shlex.split(configuration.replace("<backbone>", "qwen"))
    overrides = [override for override in overrides if override != "-m"]
    base = [] if any(override.startswith("+experiment") for override in overrides) else ["+experiment=qwen_sup"]
    assert compose_config([*base, *overrides], tmp_path)


def test_every_preset_that_names_a_paper_is_in_the_list_of_papers() -> None:
    files = [*(ROOT / "conf" / "objective").glob("*.yaml"), *(ROOT / "conf" / "method").glob("*.yaml")]
    named = {
        number for path in files for number in re.findall(r"arXiv (\d{4}\.\d{5})", path.read_text(encoding="utf-8"))
    }
    assert named - set(re.findall(r"\d{4}\.\d{5}", PAPERS)) == set()


def test_papers_named_in_the_code_are_in_the_list_of_papers() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    assert (
        set(re.findall(r"(?:arXiv|source:)\s+(\d{4}\.\d{5})", code)) - set(re.findall(r"\d{4}\.\d{5}", PAPERS)) == set()
    )


def test_the_citation_names_the_release_and_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert f'version = "{citation["version"]}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert citation["references"][0]["identifiers"][0]["value"] == "arXiv:2510.04506"
