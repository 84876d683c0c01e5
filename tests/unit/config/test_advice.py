import ast
import dataclasses
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

import grace_exp
from grace_exp.config.advice import hydra_quoted, override, this_command
from grace_exp.config.compose import conf_dir
from grace_exp.config.root import GraceConfig

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


def test_this_command_is_given_again_with_other_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from hydra.core.hydra_config import HydraConfig

    assert this_command("seed=1") is None  # a call from Python
    task = ["+experiment=demo", "seed=3", "name=it's", "job.resume=old"]
    monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(HydraConfig, "get", lambda: SimpleNamespace(overrides=SimpleNamespace(task=task)))
    words = shlex.split(this_command("seed=0,1", override("job.resume", "a b"), sweep=True) or "")
    assert words[1:] == ["-m", "grace_exp", "-m", "+experiment=demo", "name=it's", "seed=0,1", "job.resume='a b'"]


# ---- every piece of advice ------------------------------------------------------------------------------------------

SOURCES = Path(grace_exp.__file__).parent
SETTING = re.compile(r"(?<![\w./<{-])\+?((?:[a-z_]+|\{\})(?:\.(?:[a-z_]+|\{\}))+)=(?![=>])")
CHOICE = re.compile(r"(?<![\w./<{.-])\+?([a-z]+)=([a-z_0-9]+)\b")
NOT_OURS = {"torch", "wandb", "self", "config", "model", "tokenizer"}
HYDRAS = ("hydra.", "hydra/")


def said() -> Iterator[tuple[str, str]]:
    """The strings of all messages: file and text, with {} for what is filled in. Docstrings are left out."""
    for path in sorted(SOURCES.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(tree):
            if id(node) in documentation or id(node) in inner:
                continue
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
                yield path.name, "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield path.name, node.value


def known(parts: list[str], hint: Any = GraceConfig) -> bool:
    """Returns whether there is such a setting. {} stands for any name."""
    if not parts:
        return True
    arms = (hint, *get_args(hint))
    inner = [get_args(arm)[1] for arm in arms if get_origin(arm) is dict]
    fields = [field for arm in arms if dataclasses.is_dataclass(arm) for field in get_type_hints(arm).items()]
    inner += [one for name, one in fields if parts[0] in (name, "{}")]
    return any(known(parts[1:], one) for one in inner)


def test_every_setting_that_a_message_names_exists_and_is_whole_where_it_is_to_be_set() -> None:
    groups = get_type_hints(GraceConfig)
    checked, wrong = 0, []
    for file, text in said():
        for found in SETTING.finditer(text):
            key = found[1].split(".")
            if found[1].startswith((*HYDRAS, "{}")) or key[0] in NOT_OURS:
                continue
            checked += 1
            # A group's own rule begins with the group's name; keys are short in what it says, not in what is to be set.
            advised = re.search(r"\bset [^;]*$", text[: found.start()]) is not None
            own = None if advised else groups.get(file.removesuffix(".py"))
            if not known(key) and not (own is not None and known(key, own)):
                wrong.append((file, found[1]))
    assert checked > 60 and wrong == []


def test_every_choice_that_a_message_names_exists() -> None:
    groups = {path.name for path in conf_dir().iterdir() if path.is_dir()}
    named = {(file, *found) for file, text in said() for found in CHOICE.findall(text) if found[0] in groups}
    assert len(named) > 20
    missing = {
        (file, group, choice)
        for file, group, choice in named
        if not (conf_dir() / group / f"{choice}.yaml").is_file() and choice not in ("embed",)
    }
    assert missing == set()
