"""The table of modes and controls."""

import io

import numpy as np
from rich.console import Console

from grace_exp.evaluation.control_table import ControlRow, centred, control_figures, control_table
from grace_exp.evaluation.heldout_sets import HeldoutSet
from grace_exp.evaluation.scores import ItemScores, item_scores


def test_centring_removes_the_mean_and_what_all_texts_share() -> None:
    own = np.random.default_rng(0).normal(size=(40, 16))
    shared = 25 * np.ones(16)
    found = centred((own + shared).astype(np.float32))
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(found, own - own.mean(axis=0), atol=1e-5)
    assert found.dtype == np.float32
    # Documents are noisy copies of their queries: found easily once the shared part no longer hides them.
    documents = own + np.random.default_rng(1).normal(scale=0.1, size=own.shape) + shared
    search = HeldoutSet([""] * 40, [""] * 40, None)
    assert item_scores(found, centred(documents.astype(np.float32)), search).figure() == 100


def test_figures_and_table_show_both_scores_and_costs() -> None:
    items = ItemScores(np.array([0.25, 0.75]), None), ItemScores(np.array([1.0, 1.0]), None)
    rows = [ControlRow(name, "empty", *items, tokens_per_text=1.0, ms_per_text=2.34) for name in ("a", "b")]
    assert control_figures(rows) == {
        "controls/a/empty": 50.0,
        "controls/a/empty/centred": 100.0,
        "controls/b/empty": 50.0,
        "controls/b/empty/centred": 100.0,
    }
    shown = io.StringIO()
    Console(file=shown, width=120).print(control_table(rows, resamples=20))
    (line, _) = [line for line in shown.getvalue().splitlines() if "empty" in line]
    assert [cell.strip() for cell in line.split("│")[1:-1]] == [
        "a",
        "empty",
        "50.0 [25.0, 75.0]",
        "100.0 [100.0, 100.0]",
        "1.0",
        "2.3",
    ]
