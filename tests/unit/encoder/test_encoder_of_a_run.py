"""The encoder that a configuration describes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from grace_exp.config.compose import compose_config
from grace_exp.jobs.run_encoder import build_encoder

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("overrides", "tokens"),
    [
        (["job=evaluate", "evaluation=offline_small"], 32),
        (["job=evaluate", "evaluation=offline_small", "job.encode.max_tokens=3"], 3),
        (["job=evaluate", "evaluation=offline_small", "evaluation.max_tokens=null"], 500),
        (["job=embed", "job.input=texts.txt", "job.output=out.parquet", "evaluation.max_tokens=7"], 500),
    ],
)
def test_engines_are_made_for_the_rationales_of_the_job(
    overrides: list[str], tokens: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    made: Any = object()
    monkeypatch.setattr(
        "grace_exp.jobs.assemble.build_engine",
        lambda config, backbone, **_: asked.append(config.rollout.max_tokens) or made,
    )
    config = compose_config(["+experiment=demo_tiny", "rollout.max_tokens=500", *overrides], tmp_path)
    encoder = build_encoder(config, CPU)
    assert asked == [tokens]
    assert encoder.max_tokens == tokens
