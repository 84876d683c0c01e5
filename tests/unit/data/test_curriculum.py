import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grace_exp.config.data import DataConfig, SourceConfig
from grace_exp.data.curriculum import CurriculumSchedule
from grace_exp.data.datamodule import GraceDataModule
from grace_exp.data.recipes import Recipe, load_recipe
from grace_exp.data.schedule import Schedule, SourceShare
from grace_exp.errors import ConfigError, DataError


def schedule(sources: list[SourceShare] | None = None, **settings: Any) -> CurriculumSchedule:
    given = {"seed": 0, "batch_size": 1, "steps": 5, "floor": 0.1} | settings
    return CurriculumSchedule(sources or [SourceShare("s", 4, 1.0)], **given)


def knows(schedule: CurriculumSchedule, difficulties: dict[int, float]) -> CurriculumSchedule:
    schedule.difficulties.note(difficulties)
    return schedule


def test_instances_are_drawn_in_proportion_to_their_difficulty() -> None:
    # Weights 0.1 + 0.9 d. The first draw of 4000 seeds: chi-square with 3 degrees of freedom is below 16.27 in 99.9 %.
    difficulties = {0: 0.0, 1: 1.0, 2: 0.5, 3: 0.25}
    weights = np.array([0.1, 1.0, 0.55, 0.325])
    expected = 4000 * weights / weights.sum()
    drawn = Counter(knows(schedule(seed=seed), difficulties)[3][0] for seed in range(4000))
    assert sum((drawn[row] - expected[row]) ** 2 / expected[row] for row in range(4)) < 16.27


def test_a_step_draws_without_replacement_as_if_one_after_the_other() -> None:
    # P(first i, then j) = w_i / W x w_j / (W - w_i); 6 ordered pairs, 5 degrees of freedom: below 20.52 in 99.9 %.
    weights = np.array([0.1, 1.0, 0.55])
    expected = {
        (i, j): 4000 * weights[i] / weights.sum() * weights[j] / (weights.sum() - weights[i])
        for i in range(3)
        for j in range(3)
        if i != j
    }
    sources = [SourceShare("s", 3, 1.0)]
    drawn = Counter(
        tuple(knows(schedule(sources, seed=seed, batch_size=2), {0: 0.0, 1: 1.0, 2: 0.5})[1]) for seed in range(4000)
    )
    assert sum((drawn[pair] - count) ** 2 / count for pair, count in expected.items()) < 20.52


def test_what_was_not_drawn_yet_counts_as_never_found_and_step_0_knows_nothing() -> None:
    fresh = [schedule(seed=seed)[2] for seed in range(50)]
    assert [knows(schedule(seed=seed), dict.fromkeys(range(4), 1.0))[2] for seed in range(50)] == fresh
    assert [knows(schedule(seed=seed), {0: 0.0, 1: 0.3})[0] for seed in range(50)] == [
        schedule(seed=seed)[0] for seed in range(50)
    ]


def test_figures_of_an_instance_are_halved_with_every_new_one() -> None:
    known = knows(knows(knows(schedule(), {2: 1.0}), {2: 0.0, 3: 0.5}), {2: 0.5}).difficulties
    assert known.of([0, 2, 3]).tolist() == [1.0, 0.5, 0.5]
    assert known.metrics() == {"curriculum/seen_share": 0.5, "curriculum/difficulty": 0.5}


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[SourceShare], dict[str, Any], dict[int, float]]:
    batch_size = draw(st.integers(1, 6))
    sources = [
        SourceShare(f"s{n}", draw(st.integers(batch_size, 20)), draw(st.sampled_from([1 / 3, 1.0, 2.0])))
        for n in range(draw(st.integers(1, 3)))
    ]
    rows = sum(source.rows for source in sources)
    known = draw(st.dictionaries(st.integers(0, rows - 1), st.floats(0, 1)))
    return (
        sources,
        {"batch_size": batch_size, "by_source": draw(st.booleans()), "seed": draw(st.integers(0, 99))},
        known,
    )


@settings(max_examples=60, deadline=None)
@given(cases(), st.integers(2, 30))
def test_sources_have_their_turns_and_texts_stay_apart_as_in_the_plain_schedule(
    case: tuple[list[SourceShare], dict[str, Any], dict[int, float]], distinct: int
) -> None:
    sources, given_settings, known = case
    rows = sum(source.rows for source in sources)
    texts = np.random.default_rng(distinct).integers(1, distinct, size=(rows, 2)).astype(np.uint64)
    drawn = knows(schedule(sources, floor=0.2, **given_settings), known)
    apart = knows(schedule(sources, floor=0.2, texts=texts, **given_settings), known)
    plain = Schedule(sources, steps=5, **given_settings)
    ends = np.cumsum([source.rows for source in sources])

    def owners(batch: list[int]) -> list[int]:
        return np.searchsorted(ends, batch, "right").tolist()

    def in_common(batch: list[int]) -> int:
        counts = Counter(key for index in batch for key in set(texts[index].tolist()))
        return sum(count - 1 for count in counts.values())

    for step in range(5):
        assert owners(drawn[step]) == owners(plain[step]) == owners(apart[step])
        assert len(set(drawn[step])) == len(set(apart[step])) == len(plain[step])
        held = set(texts[apart[step]].ravel().tolist())
        if in_common(apart[step]):  # then a source has no instance left that shares none
            assert any(
                all(set(texts[row].tolist()) & held for row in set(range(end - source.rows, end)) - set(apart[step]))
                for source, end in zip(sources, ends, strict=True)
            )


def test_a_source_smaller_than_its_share_of_a_step_is_an_error() -> None:
    with pytest.raises(DataError, match=r"data\.sources\.s has 4 usable rows"):
        schedule(batch_size=5)


def recipe(folder: Path, **data: Any) -> Recipe:
    path = folder / "rows.jsonl"
    texts = [{"query": f"q{n}", "positive": f"p{n // 2}", "negative": f"n{n}"} for n in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in texts))
    sources = {name: SourceConfig(path=str(path), weight=weight) for name, weight in (("a", 1.0), ("b", 2.0))}
    config = DataConfig(name="d", mode="supervised", sources=sources, **data)
    return load_recipe(config, seed=3, cache_dir=folder / "cache", rejects_path=None)


def run(module: GraceDataModule, until: int) -> list[list[int]]:
    """The instances of the steps up to `until`; every one is missed by a share of its own that falls over the steps."""
    steps = []
    for step in module.train_dataloader():
        if step >= until:
            break
        indices = [instance.index for instance in module.batch(step).instances]
        module.missed({index: (index % 5) / 4 / (1 + step) for index in indices})
        module.completed(step)
        steps.append(indices)
    return steps


@pytest.mark.parametrize(
    "data", [{}, {"batch_by": "source"}, {"distinct_texts": True}, {"batch_by": "source", "distinct_texts": True}]
)
def test_a_run_cut_anywhere_draws_what_one_that_was_not_draws(tmp_path: Path, data: dict[str, Any]) -> None:
    drawn_from = recipe(tmp_path, curriculum="difficulty", **data)

    def module() -> GraceDataModule:
        return GraceDataModule(drawn_from, batch_size=4, steps=9)

    whole = run(module(), 9)
    for cut in range(10):
        first, second = module(), module()
        found = run(first, cut)
        second.load_state_dict(first.state_dict())
        assert found + run(second, 9) == whole
        assert [instance.index for instance in second.batch(0).instances] == whole[0]


def test_a_step_is_not_drawn_before_its_time(tmp_path: Path) -> None:
    module = GraceDataModule(recipe(tmp_path, curriculum="difficulty"), batch_size=4, steps=9)
    run(module, 3)
    for step in (2, 4):
        with pytest.raises(IndexError, match="before it have found"):
            module.batch(step)


def test_off_it_is_the_plain_schedule_and_a_checkpoint_of_it_is_not_gone_on_with(tmp_path: Path) -> None:
    off, on = recipe(tmp_path), recipe(tmp_path, curriculum="difficulty")
    plain = GraceDataModule(off, batch_size=4, steps=9)
    assert plain.missed({0: 1.0}) == {} and set(plain.state_dict()) == {
        "step",
        "data fingerprint",
        "seed",
        "job.batch_size",
    }
    module = GraceDataModule(on, batch_size=4, steps=9)
    with pytest.raises(ConfigError, match="data fingerprint was"):
        module.load_state_dict(plain.state_dict())
    assert recipe(tmp_path, curriculum_floor=0.5).fingerprint == off.fingerprint
    assert recipe(tmp_path, curriculum="difficulty", curriculum_floor=0.5).fingerprint != on.fingerprint


def test_figures_are_those_before_and_after_the_step(tmp_path: Path) -> None:
    module = GraceDataModule(recipe(tmp_path, curriculum="difficulty"), batch_size=4, steps=9)
    assert module.missed({0: 0.5, 7: 0.0}) == {
        "curriculum/difficulty_drawn": 1.0,
        "curriculum/difficulty": 0.25,
        "curriculum/seen_share": 2 / 24,
    }
    assert module.missed({0: 0.5, 1: 1.0})["curriculum/difficulty_drawn"] == 0.75
