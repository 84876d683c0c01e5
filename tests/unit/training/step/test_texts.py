"""What a run prints and writes at its end."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console

from grace_exp.config.backbone import BackboneConfig
from grace_exp.config.compose import compose_config
from grace_exp.config.root import GraceConfig
from grace_exp.evaluation.heldout import Example, SetResult
from grace_exp.evaluation.scores import ItemScores
from grace_exp.training.callbacks.heldout_evaluation import read_results, write_results
from grace_exp.training.model_card import model_card, with_section
from grace_exp.training.run_summary import heldout_table


def test_held_out_results_read_back_as_they_were(tmp_path: Path) -> None:
    scores = np.array([0.1, 1 / 3, -2e-17])
    results = {
        "sts": SetResult(
            ItemScores(scores, np.array([5.0, 0.2, 3.8])),
            ItemScores(-scores, np.array([5.0, 0.2, 3.8])),
            [Example("a «text»", "its\nrationale")],
            12.5,
        ),
        "retrieval": SetResult(ItemScores(scores, None), ItemScores(scores, None), [], 1.0),
    }
    sets = [f"+evaluation.sets.{name}={{kind: sts, source: stsb}}" for name in results]
    config = compose_config(["+experiment=demo_tiny", *sets], tmp_path)
    write_results(tmp_path / "before.json", results, config)
    found = read_results(tmp_path / "before.json")
    assert found.keys() == results.keys()
    for name, result in results.items():
        for part in ("rationale", "prompt_only"):
            old, new = getattr(result, part), getattr(found[name], part)
            np.testing.assert_array_equal(new.values, old.values)
            assert (new.human is None) == (old.human is None)
            assert new.figure() == old.figure()
        assert (found[name].examples, found[name].rationale_tokens) == (result.examples, result.rationale_tokens)


@pytest.mark.parametrize(
    ("backbone", "base"),
    [
        ({"source": "embedded"}, "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ({"source": "hub", "path": "Qwen/Qwen2.5-1.5B-Instruct"}, "Qwen/Qwen2.5-1.5B-Instruct"),
        ({"source": "tiny"}, None),
    ],
)
def test_the_model_card_names_the_base_model_where_there_is_one(config: GraceConfig, backbone, base) -> None:
    card = model_card(replace(config, backbone=BackboneConfig(name="b", **backbone)), "merged", {}, stock=False)
    front = yaml.safe_load(card.split("---\n")[1])
    assert front.get("base_model") == base
    assert "Held-out figures" not in card and "AutoModelForCausalLM" in card


def test_the_table_says_what_is_in_domain(tmp_path: Path) -> None:
    config = compose_config(["+experiment=demo_tiny", "evaluation=demo", "data=stsb"], tmp_path)
    rows = {name: {"before": "1.0 [0.0, 2.0]", "rise": "3.0"} for name in config.evaluation.sets}
    out = io.StringIO()
    Console(file=out, width=120).print(heldout_table(config, rows))
    lines = out.getvalue().splitlines()
    assert any("stsb dev" in line and "wordnet dev" in line for line in lines)
    assert any("in-domain" in line and line.index("in-domain") < line.index("out of domain") for line in lines)
    assert any(line.count("1.0 [0.0, 2.0]") == 2 for line in lines)
    assert not any("MiniLM" in line for line in lines)


def test_a_section_of_a_card_stands_before_use_and_replaces_an_earlier_one() -> None:
    card = "# m\n\n## Held-out figures\n\nx\n\n## Use\n\ny\n\n## Limits and licences\n\nz\n"
    once = with_section(card, "Modes", ["a", "b"])
    assert once == "# m\n\n## Held-out figures\n\nx\n\n## Modes\n\na\nb\n\n## Use\n\ny\n\n## Limits and licences\n\nz\n"
    assert with_section(with_section(card, "Modes", ["old"]), "Modes", ["a", "b"]) == once
