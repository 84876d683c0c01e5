import shlex
import subprocess

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from grace_exp.config.advice import hydra_quoted, override

HARD = ["a=b", "it's", 'a "b"', "with space", "a,b", "[final]", "a[/b]", "${x}", r"\${x}", "a\\", "true", "null", "12"]
HARD += [
    "1e5",
    "~/runs",
    "ü/東京",
    "-1",
    ".5",
    "nan",
    "_",
    "a#b",
    "$HOME",
    "`id`",
    "a;b",
    "(x)",
    "{a:1}",
    "",
    " a ",
    "\\'",
]


def read_back(text: str) -> object:
    """What Hydra makes of the override."""
    (parsed,) = OverridesParser.create().parse_overrides([f"key={hydra_quoted(text)}"])
    settings = OmegaConf.create({"x": "wrong", "key": parsed.value()})
    return settings.key


@pytest.mark.parametrize("text", HARD)
def test_the_shell_and_hydra_read_the_text_back(text: str) -> None:
    assert read_back(text) == text
    word = override("key", text)
    said = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, text=True, check=True).stdout
    assert said == f"key={hydra_quoted(text)}" == shlex.split(word)[0]


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0\n\r"), max_size=12))
@example("a\\\\${b}")
def test_any_text_is_read_back(text: str) -> None:
    assert read_back(text) == text


def test_a_plain_path_stays_as_it_is() -> None:
    assert override("job.resume", "runs/demo/2026-01-01_10-00-00_seed0") == (
        "job.resume=runs/demo/2026-01-01_10-00-00_seed0"
    )
