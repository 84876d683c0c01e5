"""Functions of the user's own are found, tried before a model loads, and told what is wrong with them."""

import json
import os
from pathlib import Path

import pytest
import torch

from grace_exp.config.compose import compose_config
from grace_exp.config.data import SourceConfig
from grace_exp.config.own_parts import OwnFunction, OwnPart
from grace_exp.config.preflight import check_machine
from grace_exp.config.reward import CustomConfig, RewardConfig, TermsConfig
from grace_exp.data.own_reader import digest_of_own_rows, read_own
from grace_exp.errors import ConfigError, DataError, GraceError, MissingResourceError
from grace_exp.objective.own_objective import try_custom_objective
from grace_exp.reward import required_inputs
from grace_exp.reward.terms.own_term import CustomTermError, try_custom_term
from grace_exp.tracking.own_sources import record_own_parts

PARTS = """
import torch

def zeros(inputs):
    return inputs.truncated_GK.double() * 0

def wrong_shape(inputs):
    return torch.zeros(inputs.truncated_GK.shape[0])

def no_tensor(inputs):
    return 1.0

def not_a_number(inputs):
    values = zeros(inputs)
    values[1, 2] = float("nan")
    return values

def raises(inputs):
    raise KeyError("embedding")

def two_arguments(inputs, more):
    return zeros(inputs)

def ranks(inputs, config):
    return inputs.rewards_GK.argsort(dim=1).argsort(dim=1).float()

def reinforce(inputs, config):
    return -(inputs.advantages_N[:, None] * inputs.logprobs_NT)[inputs.counted_NT].sum(), {}

def without_gradient(inputs, config):
    return torch.tensor(1.0), {}

def only_a_loss(inputs, config):
    return inputs.logprobs_NT.sum()

def rows(path):
    yield {"query": path, "positive": "b"}
    yield ["no", "dict"]

def broken_rows(path):
    yield {"query": "a", "positive": "b"}
    raise OSError("the server is gone")
"""


@pytest.fixture
def parts(tmp_path: Path) -> str:
    file = tmp_path / "my_parts.py"
    file.write_text(PARTS)
    return str(file)


def term(parts: str, name: str) -> CustomConfig:
    return CustomConfig(path=parts, name=name)


def test_a_term_that_gives_a_finite_value_for_each_rationale_is_accepted(parts: str) -> None:
    try_custom_term(term(parts, "zeros"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wrong_shape", r"gave the shape \(3,\); it must give one value for each rationale, \[groups, K\] = \(3, 4\)"),
        ("no_tensor", "gave float; it must give a torch.Tensor"),
        ("not_a_number", r"gave nan for rationale 2 of group 1 \(1 of 12 values are not finite\)"),
        ("raises", "raised KeyError: 'embedding' when it was tried"),
    ],
)
def test_a_term_that_gives_no_reward_is_refused(parts: str, name: str, words: str) -> None:
    with pytest.raises(CustomTermError, match=words):
        try_custom_term(term(parts, name))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("two_arguments", r"defines two_arguments\(inputs, more\), which cannot be called as two_arguments\(inputs\)"),
        ("gone", "has no function 'gone'; its functions: broken_rows, no_tensor"),
    ],
)
def test_a_function_that_is_not_there_or_takes_something_else_is_named(parts: str, name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        OwnPart("reward.terms.custom", parts, name, ("inputs",)).load()


def test_a_module_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import nothing_of_this_name")
    with pytest.raises(ConfigError, match=r"k.path=.*bad.py: importing it failed: ModuleNotFoundError"):
        OwnPart("k", str(tmp_path / "bad.py"), "f", ()).load()
    with pytest.raises(ConfigError, match=r"k.path=nowhere.at.all: importing it failed"):
        OwnPart("k", "nowhere.at.all", "f", ()).load()
    assert OwnPart("k", "json", "dumps", ("obj",)).load() is json.dumps


def test_an_edited_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    for number in (1, 2):
        file.write_text(f"def f():\n    return {number}")
        os.utime(file, ns=(number, number))
        assert OwnPart("k", str(file), "f", ()).load()() == number


def test_a_machine_without_the_file_is_told_before_anything_loads(parts: str) -> None:
    custom = "reward.terms.custom={path: gone.py, name: f, weight: 0.5}"
    with pytest.raises(MissingResourceError, match=r"reward.terms.custom.path=gone.py: no such file"):
        check_machine(compose_config(["+experiment=demo_tiny", custom], Path("run")))
    check_machine(
        compose_config(["+experiment=demo_tiny", custom.replace("gone.py", parts).replace("f,", "zeros,")], Path("run"))
    )


def test_a_term_says_which_costly_inputs_it_needs(parts: str) -> None:
    custom = CustomConfig(path=parts, name="zeros", needs=["bare"])
    assert required_inputs(RewardConfig(name="r", terms=TermsConfig(custom=custom))) == {"bare"}


def objective(parts: str, functions: str) -> list[str]:
    return ["+experiment=demo_tiny", "objective.algorithm=custom", f"objective.custom={{path: {parts}, {functions}}}"]


def test_own_advantages_and_own_loss_are_accepted_alone_and_together(parts: str) -> None:
    for functions in ("advantages: ranks", "loss: reinforce", "advantages: ranks, loss: reinforce"):
        try_custom_objective(compose_config(objective(parts, functions), Path("run")).objective, 16)


@pytest.mark.parametrize(
    ("functions", "words"),
    [
        ("loss: without_gradient", "gave a loss without gradient"),
        ("loss: only_a_loss", "gave Tensor; it must give a scalar"),
        ("advantages: zeros", r"defines zeros\(inputs\), which cannot be called as zeros\(inputs, config\)"),
    ],
)
def test_an_objective_that_gives_something_else_is_refused(parts: str, functions: str, words: str) -> None:
    with pytest.raises(GraceError, match=words):
        try_custom_objective(compose_config(objective(parts, functions), Path("run")).objective, 16)


def test_algorithm_and_functions_of_an_own_objective_go_together(parts: str) -> None:
    for settings in (objective(parts, "loss: reinforce")[::2], ["+experiment=demo_tiny", "objective.algorithm=custom"]):
        with pytest.raises(ConfigError, match="functions of your own need both"):
            compose_config(settings, Path("run"))
    with pytest.raises(ConfigError, match=r"objective\.custom names no function"):
        compose_config(objective(parts, "loss: null"), Path("run"))


def test_own_rows_are_numbered_and_what_is_no_dict_is_a_bad_row(parts: str) -> None:
    source = SourceConfig(path="db", reader=OwnFunction(path=parts, name="rows"))
    good, bad = read_own("mine", source)
    assert source.kind == "own" and good.line == 1 and good.fields == {"query": "db", "positive": "b"}
    assert (bad.line, bad.reason) == (2, "the reader gave a list; expected a dict by column")
    other = SourceConfig(path="other", reader=source.reader)
    assert digest_of_own_rows("mine", source) == digest_of_own_rows("mine", source) != digest_of_own_rows("m", other)


def test_a_reader_that_fails_is_named(parts: str) -> None:
    source = SourceConfig(path="db", reader=OwnFunction(path=parts, name="broken_rows"))
    with pytest.raises(DataError, match=r"data.sources.mine.reader .* raised OSError: the server is gone"):
        digest_of_own_rows("mine", source)


def test_the_source_is_kept_with_the_run_and_a_changed_one_beside_it(parts: str, tmp_path: Path) -> None:
    config = compose_config(objective(parts, "loss: reinforce"), tmp_path / "run")
    record_own_parts(tmp_path / "run", config)
    Path(parts).write_text(PARTS + "# changed\n")
    record_own_parts(tmp_path / "run", config)
    copies = sorted((tmp_path / "run" / "own_parts").glob("*_my_parts.py"))
    assert {copy.read_text() for copy in copies} == {PARTS, PARTS + "# changed\n"}
    (entry,) = json.loads((tmp_path / "run" / "own_parts" / "index.json").read_text())
    assert (entry["key"], entry["name"]) == ("objective.custom", "reinforce") and entry["source"] in {
        c.name for c in copies
    }


def test_a_text_setting_can_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("Name the topic.\n")
    config = compose_config(["+experiment=demo_tiny", f"prompt.system=${{file:{tmp_path}/prompt.txt}}"], Path("run"))
    assert config.prompt.system == "Name the topic."
    (tmp_path / "prompt.txt").write_text("\n")
    with pytest.raises(ConfigError, match=r"prompt.system: .*the file is empty"):
        compose_config(["+experiment=demo_tiny", f"prompt.system=${{file:{tmp_path}/prompt.txt}}"], Path("run"))


def test_the_examples_term_has_a_gradient() -> None:
    path = str(Path(__file__).parents[3] / "examples" / "own_reward_term.py")
    function = OwnPart("k", path, "log_rank", ("inputs",)).load()
    try_custom_term(term(path, "log_rank"))

    class Inputs:
        rollouts_to_anchors_GKGA = torch.randn(3, 4, 3, 1, requires_grad=True)
        rollouts_to_own_anchors_GKA = torch.randn(3, 4, 1, requires_grad=True)

    function(Inputs()).sum().backward()
    assert Inputs.rollouts_to_anchors_GKGA.grad is not None and Inputs.rollouts_to_own_anchors_GKA.grad is not None
