"""The same texts over the run."""

import json

import pandas as pd
import pytest
import torch


def test_the_same_texts_are_written_to_before_during_and_after_training_and_change_no_step(train, tmp_path) -> None:
    settings = ["job.steps=3", "logger.samples_every_n_steps=1", "optim.learning_rate=0.02"]
    run = train(*settings, "logger.evolution_every_n_steps=2", "logger.evolution_texts=2")
    table = pd.read_parquet(run.path / "evolution")
    assert sorted(set(table["step"])) == [0, 2, 3]
    texts = [
        table[table["step"] == step][["instance", "role", "text", "sample"]].to_numpy().tolist() for step in (0, 3)
    ]
    assert texts[0] == texts[1] and len(set(table["instance"])) == 2

    # Before training, with the seeds of the first step, it is what the first step wrote.
    begin, first = table[table["step"] == 0], run.samples[run.samples["step"] == 0]
    same = first[first["instance"].isin(begin["instance"])]
    assert begin["rationale"].tolist() == same["rationale"].tolist()
    assert begin["positive"].dropna().tolist() == pytest.approx(same["positive"].dropna().tolist(), abs=1e-5)
    assert begin["rationale"].tolist() != table[table["step"] == 3]["rationale"].tolist()

    nearest = json.loads(begin["neighbours"].iloc[0])
    cosines = [one["cosine"] for one in nearest]
    assert len(nearest) == 3 and cosines == sorted(cosines, reverse=True) and -1 <= cosines[-1] <= cosines[0] <= 1
    assert all(one["text"] != begin["text"].iloc[0] for one in nearest)

    torch.testing.assert_close(train(*settings).weights, run.weights, rtol=0, atol=0)
    # A resumed run has the same table.
    train(*settings, "job.steps=2", "logger.evolution_every_n_steps=2", "logger.evolution_texts=2", folder=tmp_path)
    again = ["logger.evolution_every_n_steps=2", "logger.evolution_texts=2", f"job.resume={tmp_path}"]
    resumed = train(*settings, *again, folder=tmp_path)
    pd.testing.assert_frame_equal(pd.read_parquet(resumed.path / "evolution"), table, check_exact=True)
