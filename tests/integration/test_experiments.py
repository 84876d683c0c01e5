"""Every file of conf/experiment/ composes and trains one step with the tiny model on the CPU."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from grace_exp.config.compose import compose_config, conf_dir
from grace_exp.data.wordnet import load_wordnet

FILES = sorted(path.stem for path in (conf_dir() / "experiment").glob("*.yaml"))
WRITTEN = {name: compose_config([f"+experiment={name}"], Path("unused")) for name in FILES}
# Baselines have tests of their own, and evaluations train nothing.
EXPERIMENTS = [name for name in FILES if (WRITTEN[name].job.name, WRITTEN[name].method.name) == ("train", "grace")]
ROWS = load_wordnet("train")[:16]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Small files in place of the paper's data sets, by the setting that names their path."""
    folder = tmp_path_factory.mktemp("data")
    e5, wiki = folder / "e5.jsonl", folder / "wiki1m_for_simcse.txt"
    e5.write_text(
        "".join(json.dumps({key: row[key] for key in ("query", "positive", "negative")}) + "\n" for row in ROWS)
    )
    wiki.write_text("".join(row["positive"] + "\n" for row in ROWS))
    return {
        "data/e5.jsonl": f"data.sources.e5.path={e5}",
        "data/wiki1m_for_simcse.txt": f"data.sources.wiki1m.path={wiki}",
    }


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_trains_one_step_and_leaves_a_complete_run_folder(train, data, experiment: str) -> None:
    written = WRITTEN[experiment]
    places = [data[source.path] for source in written.data.sources.values() if source.path in data]
    base = [f"+experiment={experiment}", "+debug=tiny", "hardware.threads=1", "callbacks.export=[merged]", *places]
    folder = train("callbacks.progress=none", base=base).path

    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["reward"]["name"] == written.reward.name and config["data"]["mode"] == written.data.mode
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["packages"]["torch"] == torch.__version__ and provenance["seed"] == 0
    assert provenance["data"]["fingerprint"] and sum(provenance["data"]["rows"].values()) >= 16
    metrics = pd.read_csv(folder / "metrics.csv")
    assert len(metrics) == 1 and metrics.notna().all(axis=None)
    assert {"reward/total/mean", "reward/positive/within_group_std", "embed/margin", "time/rollout"} <= set(metrics)
    samples = pd.read_parquet(folder / "samples")
    roles = {"positive", "query"} | ({"negative"} if written.data.mode == "supervised" else set())
    assert set(samples["role"]) == roles and {"total", "advantage", "rationale"} <= set(samples)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["reward_per_step"] == [pytest.approx(metrics["reward/total/mean"][0])]
    assert {"step", "rollout", "score", "update"} <= summary["seconds"].keys() and summary["peak_memory_gib"][
        "host"
    ] > 0
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-000001.ckpt"]
    assert (folder / "export" / "merged" / "model.safetensors").is_file()


def test_there_are_the_papers_rows_and_the_demos() -> None:
    assert {"demo", "demo_unsup", "demo_tiny", "sup", "unsup"} <= set(EXPERIMENTS)
