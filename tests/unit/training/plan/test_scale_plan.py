"""The run on other numbers of GPUs, and whole corpora."""

from pathlib import Path

import pytest

from grace_exp.config.compose import compose_config
from grace_exp.config.root import GraceConfig
from grace_exp.errors import ConfigError
from grace_exp.rollout.vllm.memory import GIB
from grace_exp.training.plan.dimensions import planned_dimensions
from grace_exp.training.plan.run_plan import plan_run
from grace_exp.training.plan.scale_plan import CorpusScale, TrainingScale, corpus_scale, training_scale


def planned(*overrides: str) -> tuple[GraceConfig, list[TrainingScale], list[CorpusScale]]:
    config = compose_config(["+experiment=qwen_sup", "job=plan", *overrides], Path("run"))
    dimensions, memory = planned_dimensions(config.backbone), 80 * GIB
    made = plan_run(config, dimensions, memory)
    return config, training_scale(config, dimensions, memory, None), corpus_scale(config, dimensions, made)


def test_an_epoch_takes_as_many_gpu_hours_and_tokens_on_any_number_of_gpus() -> None:
    config, rows, _ = planned("job.plan.gpus=[4,8,64,512]", "job.plan.triplets=1638400")
    assert [row.batch for row in rows] == [64, 128, 1024, 8192]  # 16 instances a GPU, as on the paper's four
    assert [row.steps * row.batch for row in rows] == [1638400] * 4
    assert len({round(row.tokens) for row in rows}) == 1
    assert all(row.hours is not None for row in rows)
    hours = [(row.hours or 0) * row.gpus for row in rows]
    assert hours == pytest.approx([hours[0]] * 4, rel=0.01)
    paper = plan_run(config, planned_dimensions(config.backbone), 80 * GIB)
    assert rows[0].hours == pytest.approx((paper.hours or 0) / paper.steps * rows[0].steps)


def test_embeddings_grow_with_the_batch_and_cosines_with_its_square() -> None:
    _, (small, large), _ = planned("job.plan.gpus=[64,512]")
    assert large.gather_mb == pytest.approx(8 * small.gather_mb)
    assert large.similarity_gib == pytest.approx(64 * small.similarity_gib)
    assert large.shares["reward"] == pytest.approx(64 * small.shares["reward"])
    # 1024 instances: 8 rationales, the anchor, the negative, of 1536 float32.
    assert small.gather_mb == pytest.approx(1024 * 10 * 1536 * 4 / 1e6)
    assert small.similarity_gib == pytest.approx(1024 * 8 * 1024 * 8 / GIB)
    assert small.shares["gradients"] == pytest.approx(4 * 2 * 4 * 1.544e9 / 25e9, rel=0.01)


def test_a_corpus_is_divided_among_the_workers_except_for_what_each_reads() -> None:
    _, _, rows = planned("job.plan.gpus=[8,64]", "job.plan.corpus=[1000000,10000000]", "job.id_column=id")
    small, small_64, large, _ = rows
    assert (small.hours or 0) == pytest.approx(8 * (small_64.hours or 0))
    assert (large.hours or 0) == pytest.approx(10 * (small.hours or 0))
    assert small.read_hours == small_64.read_hours and small.ids_gib == small_64.ids_gib > 0
    assert small_64.reads_tb == pytest.approx(8 * small.reads_tb)
    assert small.cache_hours == pytest.approx(8 * small_64.cache_hours)
    assert large.files == 100 and large.output_gb == pytest.approx(10 * small.output_gb)


def test_nothing_is_scaled_unless_asked_and_part_machines_are_refused() -> None:
    _, training, corpora = planned()
    assert training == [] and corpora == []
    with pytest.raises(ConfigError, match="gpus=12: machines have 8, so 8 or fewer, or a multiple of 8"):
        planned("job.plan.gpus=[12]")
