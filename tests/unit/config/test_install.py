"""Advice to install something is a command that works."""

import re
import shlex
from importlib import metadata
from pathlib import Path

import pytest

from grace_exp.config import install
from grace_exp.config.install import install_command

ROOT = Path(__file__).parents[3]


def test_a_checkout_is_installed_with_its_tested_versions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    assert install_command("eval", constraints="cpu.txt") == "pip install -c constraints/cpu.txt -e '.[eval]'"
    assert install_command(constraints="cuda.txt") == "pip install -c constraints/cuda.txt -e ."
    monkeypatch.chdir(tmp_path)
    words = shlex.split(install_command("eval"))
    assert words[-1] == f"{ROOT}[eval]"
    assert Path(words[3]).is_file()


def test_a_wheel_names_what_the_extra_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "__file__", "/site-packages/grace_exp/config/install.py")
    listed = ["torch>=2.11", "mteb<3,>=2.26; extra == 'eval'", "lm-eval>=0.4; extra == 'general'"]
    monkeypatch.setattr(metadata, "requires", lambda name: listed)
    assert install_command("eval") == "pip install 'mteb<3,>=2.26'"
    assert install_command() == "pip install 'torch>=2.11'"


def test_no_text_advises_a_package_that_is_on_no_index() -> None:
    texts = [path for folder in ("src", "conf", "docs") for path in (ROOT / folder).rglob("*.*") if path.is_file()]
    lines = [
        f"{path.name}: {line.strip()}"
        for path in texts
        if path.suffix in (".py", ".md", ".yaml")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"pip install [^`\n]*\bgrace[-_]exp", line)
    ]
    assert lines == []
