"""Decide whether a definition fits an example of a word's use."""

from typing import Any

from datasets import Dataset, DatasetDict
from mteb.abstasks.pair_classification import AbsTaskPairClassification
from mteb.abstasks.task_metadata import TaskMetadata

from grace_exp.evaluation.mteb.tasks.common import metadata
from grace_exp.evaluation.mteb.tasks.wordnet_rows import WORDNET_REFERENCE, held_out_rows, wordnet_revision


def _metadata(name: str, revision: str) -> TaskMetadata:
    return metadata(
        name,
        "PairClassification",
        description="Does the gloss define the word as the example uses it? Otherwise it defines another sense",
        source="grace_exp",
        revision=revision,
        reference=WORDNET_REFERENCE,
    )


class WordNetSenses(AbsTaskPairClassification):
    """Average precision of (example, its gloss) against (example, gloss of another sense), half of the pairs each.

    Attributes:
        rows: Number of rows of short texts, two pairs each, to take; None: all 500.
    """

    rows: int | None = None
    metadata = _metadata("WordNetSenses", wordnet_revision("test.jsonl"))
    input1_column_name = "sentence1"
    input2_column_name = "sentence2"
    label_column_name = "labels"

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        """Read the rows that ship with the package."""
        rows = held_out_rows(self.rows)
        self.dataset = DatasetDict(
            {
                "test": Dataset.from_dict(
                    {
                        "sentence1": [row["query"] for row in rows for _ in range(2)],
                        "sentence2": [row[side] for row in rows for side in ("positive", "negative")],
                        "labels": [1, 0] * len(rows),
                    }
                )
            }
        )
        self.data_loaded = True


class WordNetSensesSmall(WordNetSenses):
    """Some of the rows."""

    rows = 36
    metadata = _metadata("WordNetSenses.small", wordnet_revision("test.jsonl", rows))


class WordNetSensesStudy(WordNetSenses):
    """Enough rows for a study: those of `WordNetGlossesStudy`, so that the cache has the texts."""

    rows = 400
    metadata = _metadata("WordNetSenses.study", wordnet_revision("test.jsonl", rows))
