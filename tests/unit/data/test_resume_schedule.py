"""A run that is interrupted anywhere and any number of times gets the instances of an uninterrupted run."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grace_exp.config.data import DataConfig, SourceConfig
from grace_exp.data.datamodule import GraceDataModule
from grace_exp.data.recipes import Recipe, load_recipe


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Recipe]:
    folder = tmp_path_factory.mktemp("recipes")
    found = {}
    for rows in (7, 12):
        (folder / f"{rows}.txt").write_text("".join(f"text {n}\n" for n in range(rows)))
        sources = {
            name: SourceConfig(path=str(folder / f"{rows}.txt"), weight=w) for name, w in (("a", 1.0), ("b", 2.5))
        }
        data = DataConfig(name="d", mode="unsupervised", sources=sources)
        found[rows] = load_recipe(data, seed=rows, cache_dir=folder / "cache", rejects_path=None)
    return found


def fed(module: GraceDataModule, until: int) -> list[tuple[int, list[int]]]:
    """The steps from where the module stands to `until`, with their instances; the module goes on."""
    steps = []
    for step in module.train_dataloader():
        if step >= until:
            break
        steps.append((step, [instance.index for instance in module.batch(step).instances]))
        module.completed(step)
    return steps


@given(
    rows=st.sampled_from([7, 12]),
    batch_size=st.sampled_from([1, 2, 4]),
    steps=st.integers(1, 15),
    cuts=st.lists(st.integers(0, 15), max_size=4),
    longer=st.integers(0, 5),
)
@settings(max_examples=30, deadline=None)
def test_a_run_cut_anywhere_is_fed_as_one_that_was_not(recipes, rows, batch_size, steps, cuts, longer) -> None:
    def module(steps: int) -> GraceDataModule:
        return GraceDataModule(recipes[rows], batch_size=batch_size, steps=steps)

    whole = fed(module(steps + longer), steps + longer)
    found, state = [], module(steps).state_dict()
    for cut in [*sorted(min(cut, steps) for cut in cuts), steps]:
        resumed = module(steps)
        resumed.load_state_dict(state)
        found += fed(resumed, cut)
        state = resumed.state_dict()
    longer_run = module(steps + longer)  # of a run that had ended, more steps
    longer_run.load_state_dict(state)
    assert found + fed(longer_run, steps + longer) == whole
    assert [step for step, _ in whole] == list(range(steps + longer))
