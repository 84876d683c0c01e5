"""What a student keeps, in closed form."""

from typing import Literal

import numpy as np
import pytest

from grace_exp.config.evaluation import EvaluationConfig, EvaluationSetConfig
from grace_exp.data.batch import Role
from grace_exp.evaluation.heldout_sets import load_set
from grace_exp.evaluation.scores import ItemScores, Vectors, item_scores
from grace_exp.evaluation.student_report import BEFORE, STUDENT, TEACHER, Measured, SetReport, measure, student_card


def items(*values: float) -> ItemScores:
    return ItemScores(np.array(values), None)


def report(untrained: ItemScores | None, **more: Measured) -> SetReport:
    rows = {TEACHER: Measured(items(0.6, 0.8), 20.0), STUDENT: Measured(items(0.5, 0.7), 2.0), **more}
    return SetReport("wordnet", rows, untrained, resamples=20)


def test_kept_is_the_students_rise_over_the_teachers() -> None:
    known = report(items(0.2, 0.4))
    assert known.kept(STUDENT) == pytest.approx(0.75)
    assert known.kept(TEACHER) == pytest.approx(1)
    assert known.line() == (
        "wordnet: the student keeps 75% of the teacher's gain, 30.0 [30.0, 30.0] of 40.0 [40.0, 40.0] points; "
        "2.0 ms per text, the teacher 20.0 ms"
    )
    found = known.as_dict()
    assert found["kept"] == pytest.approx(0.75)
    assert found["rows"][STUDENT]["rise"]["value"] == pytest.approx(30)
    assert found["rows"][STUDENT]["values"] == [0.5, 0.7]


def test_what_another_model_could_do_before_is_said() -> None:
    known = report(items(0.2, 0.4), **{BEFORE: Measured(items(0.3, 0.5), 2.0)})
    assert "points (before distillation 10.0 [10.0, 10.0]); 2.0 ms" in known.line()


@pytest.mark.parametrize(("untrained", "why"), [(None, "not known"), (items(0.7, 0.9), "no gain to keep")])
def test_without_a_gain_there_is_no_share(untrained: ItemScores | None, why: str) -> None:
    found = report(untrained)
    assert found.kept(STUDENT) is None and found.as_dict()["kept"] is None
    assert "60.0 [50.0, 70.0], the teacher 70.0" in found.line() and why in found.line()
    assert all(cells[3] == "" for cells in found.cells())


def test_the_card_has_every_row() -> None:
    card = student_card("student", "runs/mine", "It.", [report(items(0.2, 0.4))])
    assert "# Student of mine" in card
    assert "| wordnet | student | 60.0 [50.0, 70.0] | 75% | 2.0 |" in card
    assert "| wordnet | untrained | 30.0 [20.0, 40.0] |  |  |" in card


@pytest.mark.parametrize(("kind", "source"), [("sts", "stsb"), ("retrieval", "wordnet")])
def test_sets_are_scored_as_in_training_and_equal_texts_embedded_once(
    kind: Literal["sts", "retrieval"], source: Literal["stsb", "wordnet"]
) -> None:
    chosen = EvaluationSetConfig(kind=kind, source=source, size=30)
    asked: list[tuple[Role, int]] = []

    def vector(text: str) -> np.ndarray:
        return np.array([len(text), text.count("e"), text.count("a"), 1], dtype=np.float32)

    def embed(texts: list[str], role: Role) -> Vectors:
        assert len(set(texts)) == len(texts)
        asked.append((role, len(texts)))
        return np.stack([vector(text) for text in texts])

    found = measure(EvaluationConfig(name="own", sets={"one": chosen}), embed)["one"]
    heldout = load_set("one", chosen)
    first, second = (np.stack([vector(text) for text in texts]) for texts in (heldout.first, heldout.second))
    np.testing.assert_array_equal(found.items.values, item_scores(first, second, heldout).values)
    assert found.ms_per_text is not None and found.ms_per_text > 0
    assert [role for role, _ in asked][1:] == [Role.QUERY, Role.QUERY if kind == "sts" else Role.POSITIVE]
