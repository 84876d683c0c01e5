"""Find the definition of a word's sense from an example of its use."""

from typing import Any

from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.task_metadata import TaskMetadata

from grace_exp.evaluation.mteb.tasks.common import metadata
from grace_exp.evaluation.mteb.tasks.wordnet_rows import WORDNET_REFERENCE, held_out_rows, wordnet_revision


def _metadata(name: str, revision: str) -> TaskMetadata:
    return metadata(
        name,
        "Retrieval",
        description="Find the WordNet gloss of a usage example among glosses, held-out synsets",
        source="grace_exp",
        revision=revision,
        reference=WORDNET_REFERENCE,
    )


class WordNetGlosses(AbsTaskRetrieval):
    """nDCG@10 of the gloss of an example among all glosses, on held-out synsets of WordNet 3.0.

    The documents are the glosses of all examples and of their negatives (mostly another sense of the word).

    Attributes:
        rows: Number of rows of short texts to take; None: all 500.
    """

    rows: int | None = None
    metadata = _metadata("WordNetGlosses", wordnet_revision("test.jsonl"))

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        """Read the rows that ship with the package."""
        rows = held_out_rows(self.rows)
        glosses = dict.fromkeys(row[side] for row in rows for side in ("positive", "negative"))
        place = {gloss: f"d{number}" for number, gloss in enumerate(glosses)}
        self.dataset = {
            "default": {
                "test": RetrievalSplitData(
                    queries=Dataset.from_list([{"id": row["synset"], "text": row["query"]} for row in rows]),
                    corpus=Dataset.from_list([{"id": place[gloss], "text": gloss, "title": ""} for gloss in glosses]),
                    relevant_docs={row["synset"]: {place[row["positive"]]: 1} for row in rows},
                    top_ranked=None,
                )
            }
        }
        self.data_loaded = True


class WordNetGlossesSmall(WordNetGlosses):
    """Some of the rows."""

    rows = 36
    metadata = _metadata("WordNetGlosses.small", wordnet_revision("test.jsonl", rows))


class WordNetGlossesStudy(WordNetGlosses):
    """Enough rows for a study."""

    rows = 400
    metadata = _metadata("WordNetGlosses.study", wordnet_revision("test.jsonl", rows))
