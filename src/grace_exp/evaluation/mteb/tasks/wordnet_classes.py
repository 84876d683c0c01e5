"""Group definitions by the kind of thing that they define."""

from typing import Any

from datasets import Dataset, DatasetDict
from mteb.abstasks.clustering import AbsTaskClustering
from mteb.abstasks.task_metadata import TaskMetadata

from grace_exp.data.wordnet import load_wordnet_classes
from grace_exp.evaluation.mteb.tasks.common import metadata, short
from grace_exp.evaluation.mteb.tasks.wordnet_rows import WORDNET_REFERENCE, wordnet_revision


def _metadata(name: str, revision: str) -> TaskMetadata:
    return metadata(
        name,
        "Clustering",
        description="Group definitions of nouns by WordNet's ten classes, held-out synsets",
        source="grace_exp",
        revision=revision,
        reference=WORDNET_REFERENCE,
    )


class WordNetClasses(AbsTaskClustering):
    """V-measure of k-means on definitions of nouns against WordNet's classes (animal, food, time, ...).

    Attributes:
        texts: Number of short texts to take; None: all 600.
    """

    texts: int | None = None
    metadata = _metadata("WordNetClasses", wordnet_revision("classes.jsonl"))
    # MTEB's default would embed 4 % of the texts, and draw 16384 with replacement for each of ten clusterings.
    max_fraction_of_documents_to_embed = None
    max_document_to_embed = None
    max_documents_per_cluster = 2048

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        """Read the definitions that ship with the package."""
        rows = load_wordnet_classes()
        if self.texts is not None:
            rows = [row for row in rows if short(row["text"])][: self.texts]
        columns = {"sentences": [row["text"] for row in rows], "labels": [row["label"] for row in rows]}
        self.dataset = DatasetDict({"test": Dataset.from_dict(columns)})
        self.data_loaded = True


class WordNetClassesSmall(WordNetClasses):
    """Some of the definitions."""

    texts = 80
    metadata = _metadata("WordNetClasses.small", wordnet_revision("classes.jsonl", texts))


class WordNetClassesStudy(WordNetClasses):
    """Enough definitions for a study."""

    texts = 300
    metadata = _metadata("WordNetClasses.study", wordnet_revision("classes.jsonl", texts))
