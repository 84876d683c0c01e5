from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grace_exp.data.schedule import Schedule, SourceShare
from grace_exp.errors import DataError


@st.composite
def schedules(draw: st.DrawFn) -> tuple[list[SourceShare], int, int, int]:
    batch_size = draw(st.integers(1, 9))
    sources = [
        # A batch can hold no more of a source than it has, whatever its weight.
        SourceShare(f"s{n}", draw(st.integers(batch_size, 30)), draw(st.sampled_from([0.1, 1 / 3, 1.0, 2.0, 7.5])))
        for n in range(draw(st.integers(1, 4)))
    ]
    return sources, draw(st.integers(0, 2**32 - 1)), batch_size, draw(st.integers(1, 40))


def of_source(sources: list[SourceShare], number: int, indices: list[int]) -> list[int]:
    start = sum(source.rows for source in sources[:number])
    return [index for index in indices if start <= index < start + sources[number].rows]


@settings(max_examples=60, deadline=None)
@given(schedules())
def test_schedule_properties(case: tuple[list[SourceShare], int, int, int]) -> None:
    sources, seed, batch_size, steps = case
    schedule = Schedule(sources, seed=seed, batch_size=batch_size, steps=steps)
    batches = [schedule[step] for step in range(steps)]
    flat = [index for batch in batches for index in batch]

    # Every step is full and holds nothing twice.
    assert all(len(batch) == len(set(batch)) == batch_size for batch in batches)
    # A source's draws are whole epochs, each holding every row once, and the beginning of one more.
    weights = np.array([source.weight for source in sources])
    for number, source in enumerate(sources):
        drawn = of_source(sources, number, flat)
        epochs = [drawn[at : at + source.rows] for at in range(0, len(drawn), source.rows)]
        assert all(len(set(epoch)) == len(epoch) for epoch in epochs)
        # At turn T a source has floor(T w + 1/2) draws: no further from its share than half a draw of every source.
        taken = np.cumsum([index in set(drawn) for index in flat])
        share = np.arange(1, len(flat) + 1) * weights[number] / weights.sum()
        assert np.abs(taken - share).max() <= (len(sources) + 1) / 2 + 1e-9
    # A pure function of (seed, sources, batch size, step): a longer schedule begins with this one.
    longer = Schedule(sources, seed=seed, batch_size=batch_size, steps=steps + 7)
    assert batches == [longer[step] for step in range(steps)]


def test_steps_can_be_asked_for_in_any_order() -> None:
    schedule = Schedule([SourceShare("a", 11, 1.0)], seed=3, batch_size=4, steps=20)
    forwards = [schedule[step] for step in range(20)]
    assert [schedule[step] for step in reversed(range(20))] == forwards[::-1]
    assert all(isinstance(index, int) for index in forwards[0])


def test_weights_that_divide_the_batch_are_met_in_every_step() -> None:
    sources = [SourceShare("a", 100, 3.0), SourceShare("b", 50, 1.0)]
    schedule = Schedule(sources, seed=0, batch_size=8, steps=100)
    assert all(Counter(index < 100 for index in schedule[step]) == {True: 6, False: 2} for step in range(100))


def test_the_seed_and_the_epoch_change_the_order() -> None:
    def epochs(seed: int) -> list[list[int]]:
        schedule = Schedule([SourceShare("a", 64, 1.0)], seed=seed, batch_size=64, steps=3)
        return [schedule[step] for step in range(3)]

    orders = epochs(0) + epochs(1)
    assert len({tuple(order) for order in orders}) == 6
    assert all(sorted(order) == list(range(64)) != order for order in orders)


def test_equal_sources_have_orders_of_their_own() -> None:
    schedule = Schedule([SourceShare("a", 32, 1.0), SourceShare("b", 32, 1.0)], seed=0, batch_size=64, steps=1)
    assert [i for i in schedule[0] if i < 32] != [i - 32 for i in schedule[0] if i >= 32]


def test_first_draws_are_spread_evenly_over_the_rows() -> None:
    # The first row drawn under 2000 seeds, out of 10: chi-square with 9 degrees of freedom is below 27.88 in 99.9 %.
    first = Counter(
        Schedule([SourceShare("a", 10, 1.0)], seed=seed, batch_size=1, steps=1)[0][0] for seed in range(2000)
    )
    assert sum((first[row] - 200) ** 2 / 200 for row in range(10)) < 27.88


def test_a_source_smaller_than_its_share_of_a_step_is_an_error() -> None:
    sources = [SourceShare("big", 100, 1.0), SourceShare("small", 3, 1.0)]
    with pytest.raises(DataError, match=r"data\.sources\.small has 3 usable rows.*job\.batch_size=8 takes 4 different"):
        Schedule(sources, seed=0, batch_size=8, steps=2)
    Schedule(sources, seed=0, batch_size=6, steps=50)


def test_a_schedule_ends() -> None:
    schedule = Schedule([SourceShare("a", 4, 1.0)], seed=0, batch_size=2, steps=3)
    assert len(schedule) == 3
    for step in (3, -1):
        with pytest.raises(IndexError):
            schedule[step]


def texts_in_common(batch: list[int], texts: np.ndarray) -> int:
    """How many texts of a batch stand in more than one of its instances."""
    counts = Counter(key for index in batch for key in set(texts[index].tolist()) - {0})
    return sum(count > 1 for count in counts.values())


@settings(max_examples=40, deadline=None)
@given(schedules(), st.integers(2, 40), st.integers(0, 99))
def test_instances_with_a_text_in_common_are_kept_apart(
    case: tuple[list[SourceShare], int, int, int], distinct: int, draw: int
) -> None:
    sources, seed, batch_size, steps = case
    instances = sum(source.rows for source in sources)
    texts = np.random.default_rng(draw).integers(1, distinct, size=(instances, 2)).astype(np.uint64)
    plain = Schedule(sources, seed=seed, batch_size=batch_size, steps=steps)
    apart = Schedule(sources, seed=seed, batch_size=batch_size, steps=steps, texts=texts)
    before = sum(texts_in_common(plain[step], texts) for step in range(steps))
    after = sum(texts_in_common(apart[step], texts) for step in range(steps))
    assert after <= before
    assert all(len(set(apart[step])) == batch_size for step in range(steps))
    longer = Schedule(sources, seed=seed, batch_size=batch_size, steps=steps + 7, texts=texts)
    assert [apart[step] for step in range(steps)] == [longer[step] for step in range(steps)]
    for step in range(steps):  # each source gives a step as many as before
        for number in range(len(sources)):
            assert len(of_source(sources, number, apart[step])) == len(of_source(sources, number, plain[step]))


def test_where_the_data_allow_no_batch_has_a_text_twice() -> None:
    texts = np.repeat(np.arange(1, 51, dtype=np.uint64), 4)[:, None]  # every text in four instances
    sources = [SourceShare("s", 200, 1.0)]
    plain = Schedule(sources, seed=3, batch_size=8, steps=100)
    apart = Schedule(sources, seed=3, batch_size=8, steps=100, texts=texts)
    assert sum(texts_in_common(plain[step], texts) for step in range(100)) > 20
    assert sum(texts_in_common(apart[step], texts) for step in range(100)) == 0


def test_distinct_texts_change_nothing_where_none_repeats() -> None:
    sources = [SourceShare("a", 30, 1.0), SourceShare("b", 20, 2.0)]
    texts = np.arange(1, 101, dtype=np.uint64).reshape(50, 2)
    plain = Schedule(sources, seed=1, batch_size=6, steps=20)
    apart = Schedule(sources, seed=1, batch_size=6, steps=20, texts=texts)
    assert [plain[step] for step in range(20)] == [apart[step] for step in range(20)]


def test_batches_by_source_are_shared_out_by_weight() -> None:
    sources = [SourceShare("a", 40, 1.0), SourceShare("b", 40, 3.0)]
    schedule = Schedule(sources, seed=0, batch_size=5, steps=40, by_source=True)
    steps = [len(of_source(sources, 0, schedule[step])) for step in range(40)]
    assert set(steps) == {0, 5} and steps.count(5) == 10
