"""Mined negatives are ready for training."""

import json
from pathlib import Path

import pytest

from grace_exp.config.compose import compose_config
from grace_exp.data.recipes import load_recipe
from grace_exp.errors import ConfigError, DataError
from grace_exp.jobs import run as run_job


def test_pairs_become_triplets_that_training_reads(tmp_path: Path) -> None:
    pairs = [{"query": f"question {row} of cats", "positive": f"answer {row} on {row * row} dogs"} for row in range(8)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    common = ["+experiment=demo_tiny", f"cache_dir={tmp_path / 'cache'}", "rollout.max_tokens=4"]
    job = ["job=mine_negatives", "hardware=cpu", f"job.input={tmp_path / 'pairs.jsonl'}"]
    output = tmp_path / "triplets.jsonl"
    settings = ["job.mine.negatives=2", "job.mine.relative_margin=null", f"job.output={output}"]
    figures = run_job(compose_config([*common, *job, *settings], tmp_path / "run"))
    assert figures == {"mine/pairs": 8, "mine/triplets": 8}
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    answers = {pair["query"]: pair["positive"] for pair in pairs}
    for row in rows:
        assert answers[row["query"]] == row["positive"]
        assert len(set(row["negative"])) == 2 and row["positive"] not in row["negative"]
        assert set(row["negative"]) <= set(answers.values())
    reading = [*common, "data=triplets", f"data.sources.file.path={output}", "data.negatives=2"]
    recipe = load_recipe(
        compose_config(reading, tmp_path).data, seed=0, cache_dir=tmp_path / "cache", rejects_path=None
    )
    assert len(recipe) == 8
    with pytest.raises(DataError, match="mine_negatives"):
        run_job(compose_config([*common, *job, *settings, "job.mine.max_score=-1"], tmp_path / "run"))
    with pytest.raises(ConfigError, match=r"job=mine_negatives writes \.jsonl or \.parquet"):
        compose_config([*common, *job, "job.output=x.npy"], tmp_path)
