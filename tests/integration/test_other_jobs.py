"""The jobs other than training, and the output of the command."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml

from grace_exp.config.compose import compose_config
from grace_exp.errors import ConfigError, DataError
from grace_exp.evaluation.scores import ItemScores
from grace_exp.jobs import run
from grace_exp.tracking.metrics import find_metric

HELD_OUT = [
    "evaluation=demo",
    "evaluation.minilm=false",
    "evaluation.sets.stsb.size=12",
    "evaluation.sets.wordnet.size=8",
]
GOOD = [{"query": f"q{i}", "positive": f"p{i}", "negative": f"n{i}"} for i in range(4)]

Invoke = Callable[..., int]


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def test_evaluating_a_run_gives_the_figures_it_ended_with(train, tmp_path: Path, capsys) -> None:
    trained = train("job.steps=2", "optim.learning_rate=0.01", "+backbone.lora.rank=4", *HELD_OUT)
    overrides = ["+experiment=demo_tiny", "rollout.max_tokens=6", "+backbone.lora.rank=4", *HELD_OUT, "job=evaluate"]
    capsys.readouterr()
    after = run(compose_config([*overrides, f"job.resume={trained.path}"], tmp_path / "after"))
    shown = capsys.readouterr().out
    assert "step-000002.ckpt" in shown.replace("\n", "") and "prompt only" in shown and "nDCG@10" in shown
    before = run(compose_config(overrides, tmp_path / "before"))

    kept = {
        moment: json.loads((trained.path / "evaluation" / f"{moment}.json").read_text())
        for moment in ("before", "after")
    }
    for moment, figures in (("before", before), ("after", after)):
        assert figures == {
            f"val/{name}/{row}": kept[moment][name][row]["figure"]
            for name in ("stsb", "wordnet")
            for row in ("rationale", "prompt_only")
        }
        again = json.loads((tmp_path / moment / "evaluation" / "now.json").read_text())
        for found in (*again.values(), *kept[moment].values()):
            found.pop("ms_per_text", None)
        assert again == kept[moment]
    assert before != after
    assert yaml.safe_load((tmp_path / "after" / "config.yaml").read_text())["job"]["name"] == "evaluate"


def test_evaluating_another_model_with_a_runs_weights_is_refused(train, tmp_path: Path) -> None:
    trained = train("job.steps=1")
    overrides = ["+experiment=demo_tiny", *HELD_OUT, "job=evaluate", f"job.resume={trained.path}"]
    with pytest.raises(
        ConfigError, match=r"another model\n(.*\n)*  backbone\.lora\.rank: None in the checkpoint, 4 now"
    ) as raised:
        run(compose_config([*overrides, "+backbone.lora.rank=4", "backbone.pooling.method=last"], tmp_path))
    assert "pooling" not in str(raised.value)  # reading the embedding elsewhere is a fair question


def test_prepare_data_describes_the_recipe_and_trains_nothing(invoke: Invoke, tmp_path: Path, capsys) -> None:
    file = write(tmp_path / "rows.jsonl", *GOOD)
    data = ["data=triplets", f"data.sources.file.path={file}", "job.batch_size=2", "objective.mini_batch_size=2"]
    assert invoke("+experiment=demo_tiny", "job=prepare_data", *data, "hydra.run.dir=out") == 0
    out, err = capsys.readouterr()
    assert "4 instances" in out and "data_report.html" in out and err == ""
    report = json.loads((tmp_path / "out" / "data_report.json").read_text())
    assert (report["instances"], report["rejected_by_reason"]) == (4, {})
    source = report["sources"]["file"]
    assert (source["usable"], source["rejected"], source["kept"], source["dropped"]) == (4, 0, 4, {})
    assert source["first_instances"][0][0] == "q0" and source["tokens"]["positive"]["texts"] == 4
    page = (tmp_path / "out" / "data_report.html").read_text()
    assert "4 instances for training" in page and "default-src 'none'" in page
    assert json.loads((tmp_path / "out" / "provenance.json").read_text())["data"]["rows"] == {"file": 4}
    assert not (tmp_path / "out" / "metrics.csv").exists()


def test_prepare_data_lists_rejected_rows(invoke: Invoke, tmp_path: Path, capsys) -> None:
    file = write(tmp_path / "rows.jsonl", GOOD[0], "{broken\n", {"query": "q"}, *GOOD[1:])
    data = ["data=triplets", f"data.sources.file.path={file}", "job.batch_size=2", "objective.mini_batch_size=2"]
    arguments = ["+experiment=demo_tiny", "job=prepare_data", *data, "data.on_bad_row=reject", "hydra.run.dir=out"]
    for _ in range(2):  # the second time rows come from the cache
        assert invoke(*arguments) == 0
        out, _ = capsys.readouterr()
        assert "1 bad rows: broken JSON" in out and "Rejected rows: " in out
        report = json.loads((tmp_path / "out" / "data_report.json").read_text())
        assert sum(report["rejected_by_reason"].values()) == 2 == report["sources"]["file"]["rejected"]
        rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
        assert [(reject["file"], reject["line"]) for reject in rejects] == [(str(file), 2), (str(file), 3)]


def test_prepare_data_says_that_a_step_needs_more_rows(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", *GOOD)
    overrides = ["+experiment=demo_tiny", "job=prepare_data", "data=triplets", f"data.sources.file.path={file}"]
    sizes = ["job.batch_size=8", "objective.mini_batch_size=8", f"cache_dir={tmp_path}"]
    with pytest.raises(DataError, match=r"data\.sources\.file has 4 usable rows"):
        run(compose_config([*overrides, *sizes], tmp_path / "out"))


def test_training_goes_on_without_rejected_rows_and_lists_them(train, tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", "{broken\n", *GOOD)
    folder = train("job.steps=1", "data=triplets", f"data.sources.file.path={file}", "data.on_bad_row=reject").path
    (reject,) = [json.loads(line) for line in (folder / "rejects.jsonl").read_text().splitlines()]
    assert (reject["file"], reject["line"]) == (str(file), 1)
    assert json.loads((folder / "summary.json").read_text())["data"]["rejected"] == {"file": 1}


@pytest.mark.parametrize("job", ["train", "prepare_data"])
def test_a_broken_line_ends_the_command_with_one_message(invoke: Invoke, tmp_path: Path, job: str, capsys) -> None:
    file = write(tmp_path / "rows.jsonl", *GOOD, '{"query": "q", "positive": \n')
    data = ["data=triplets", f"data.sources.file.path={file}", f"job={job}"]
    assert invoke("+experiment=demo_tiny", *data) == 2
    out, err = capsys.readouterr()
    assert err.startswith("grace-exp: ") and f"{file}, line 5: broken JSON" in err
    assert "Traceback" not in out + err and len(err.splitlines()) == 1


def test_the_demo_of_the_tiny_model_says_its_steps_and_where_things_are(invoke: Invoke, tmp_path: Path, capfd) -> None:
    export = "callbacks.export=[merged]"
    assert invoke("+experiment=demo_tiny", "job.steps=2", export, *HELD_OUT, "hydra.run.dir=out", "logger=wandb") == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert [line for line in out.splitlines() if line.startswith("step ")][1].startswith("step 2/2  reward ")
    assert "evaluating before training: stsb, wordnet" in out and "Spearman x 100" in out and "in-domain" in out
    assert f"Run folder: {tmp_path / 'out'}" in out and f"Model: {tmp_path / 'out' / 'export' / 'merged'}" in out
    for word in ("Lightning", "Tip", "GPU available", "it/s", "weights_only"):
        assert word not in out


def test_controls_stand_beside_the_held_out_figures(tmp_path: Path, capsys) -> None:
    sets = [setting.replace("size=12", "size=8") for setting in HELD_OUT]
    overrides = ["+experiment=demo_tiny", "rollout.max_tokens=6", *sets, "job=evaluate", "evaluation.bootstrap=50"]
    figures = run(compose_config([*overrides, "evaluation.controls=true"], tmp_path))
    assert "Modes and control rationales" in capsys.readouterr().out
    rows = ["prompt_only", "rationale", "query_only", "empty", "random_words", "repeated", "swapped"]
    expected = {"stsb": [row for row in rows if row != "query_only"], "wordnet": rows}
    named = {name for name in figures if name.startswith("controls/")}
    assert named == {
        f"controls/{name}/{row}{ending}"
        for name, some in expected.items()
        for row in some
        for ending in ("", "/centred")
    }
    assert all(find_metric(name) is not None for name in named)
    for name in expected:
        for row in ("rationale", "prompt_only"):
            assert figures[f"controls/{name}/{row}"] == pytest.approx(figures[f"val/{name}/{row}"], abs=1e-6)
    assert len({round(figures[f"controls/stsb/{row}"], 3) for row in expected["stsb"]}) > 2

    written = pd.read_csv(tmp_path / "evaluation" / "controls.csv").set_index(["set", "row"])
    assert [row for _, row in written.index] == [*expected["stsb"], *expected["wordnet"]]
    tokens = written["tokens_per_text"]
    for name in expected:
        assert (tokens[name, "prompt_only"], tokens[name, "empty"]) == (0, 1)
        assert tokens[name, "random_words"] == tokens[name, "swapped"] == tokens[name, "rationale"] <= 6
    assert (written["ms_per_text"] > 0).all() and (written["low"] <= written["score"]).all()
    record = json.loads((tmp_path / "evaluation" / "controls.json").read_text())
    assert (record["max_tokens"], len(record["rows"])) == (6, len(written))
    for kept, (_, line) in zip(record["rows"], written.iterrows(), strict=True):
        assert ItemScores.from_dict(kept["centred"]).figure() == pytest.approx(line["centred"], abs=1e-4)


def test_controls_of_an_exported_run_need_none_of_its_settings(train, tmp_path: Path) -> None:
    """Prompt, pooling and budget are the export's: the rows are those of the run's checkpoint."""
    trained = train(
        "job.steps=1", "callbacks.export=[merged]", "rollout.policy_role=query", folder=tmp_path / "run"
    ).path
    job = ["job=evaluate", "hardware.threads=1", "evaluation.controls=true", "evaluation.bootstrap=20"]
    job += [setting.replace("size=12", "size=8") for setting in HELD_OUT]
    model = run(compose_config([*job, f"job.model={trained}", "hardware=cpu"], tmp_path / "model"))
    run_settings = ["+experiment=demo_tiny", "rollout.max_tokens=6", "rollout.policy_role=query"]
    resumed = run(compose_config([*run_settings, *job, f"job.resume={trained}"], tmp_path / "resumed"))
    assert model.keys() == {name for name in resumed if name.startswith("controls/")}
    record = json.loads((tmp_path / "model" / "evaluation" / "controls.json").read_text())
    assert record["max_tokens"] == 6 and record["model"] == str(trained)
    assert "Modes and control rationales" in (trained / "export" / "merged" / "README.md").read_text()


def test_controls_without_held_out_sets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.controls=true, but evaluation=offline_small has no held-out"):
        compose_config(["job=evaluate", "evaluation=offline_small", "evaluation.controls=true"], tmp_path)
