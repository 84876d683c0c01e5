"""Sentiment of sentences from film reviews."""

import io
import tarfile
from pathlib import Path
from typing import Any, ClassVar

from datasets import Dataset, DatasetDict
from mteb.abstasks.classification import AbsTaskClassification
from mteb.abstasks.task_metadata import TaskMetadata

from grace_exp.evaluation.mteb.packaged import PackagedFiles
from grace_exp.evaluation.mteb.tasks.common import draw, metadata, short

_ARCHIVE = "additional_resources/hutto_ICWSM_2014.tar.gz"
_MEMBER = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
VADER_FILES = PackagedFiles(
    "vaderSentiment==3.3.2",
    "sdist",
    {_ARCHIVE: "d5bb07d87474b3eb8d30b4deccbc23f19d742a6c5718fbacc65485b70b95c5fa"},
)
CLEAR = 1.0
"""Lowest mean rating (-4 to 4) of a positive sentence; a sentence below its negative is negative."""


def _metadata(name: str, revision: str) -> TaskMetadata:
    return metadata(
        name,
        "Classification",
        description="Is a sentence of a film review positive or negative? Clear cases, by the mean of 20 raters",
        source="vaderSentiment",
        revision=revision,
        reference="https://github.com/cjhutto/vaderSentiment",
    )


class VaderMovies(AbsTaskClassification):
    """Accuracy of a logistic regression on 8 sentences a class, ten draws (Hutto and Gilbert 2014).

    Attributes:
        sizes: Numbers of texts to train on and to test on.
        only_short: Whether to take only short texts.
    """

    sizes: ClassVar[dict[str, int]] = {"train": 160, "test": 1000}
    only_short = False
    metadata = _metadata("VaderMovies", "3.3.2")

    def __init__(self, cache_dir: Path) -> None:
        """Store the folder for downloaded files."""
        super().__init__()
        self._cache_dir = cache_dir

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        """Read the sentences, half of each part positive; the first call downloads them.

        Raises:
            MissingResourceError: The file cannot be downloaded.
        """
        rated = self._rated()
        parts: dict[str, list[tuple[str, int]]] = {"train": [], "test": []}
        for label, sign in ((0, -1), (1, 1)):
            texts = [text for text, rating in rated.items() if sign * rating >= CLEAR]
            if self.only_short:
                texts = [text for text in texts if short(text)]
            drawn = draw(texts, sum(self.sizes.values()) // 2, key=str)
            cut = self.sizes["train"] // 2
            parts["train"] += [(text, label) for text in drawn[:cut]]
            parts["test"] += [(text, label) for text in drawn[cut:]]
        self.dataset = DatasetDict(
            {
                part: Dataset.from_dict({"text": [text for text, _ in rows], "label": [label for _, label in rows]})
                for part, rows in parts.items()
            }
        )
        self.data_loaded = True

    def _rated(self) -> dict[str, float]:
        """Return the mean rating of every sentence; a line has number, rating and sentence, separated by tabs."""
        file = VADER_FILES.fetch(self._cache_dir)[_ARCHIVE]
        with tarfile.open(fileobj=io.BytesIO(file.read_bytes())) as archive:
            stream = archive.extractfile(_MEMBER)
            assert stream is not None  # a file, not a folder
            lines = stream.read().decode("utf-8").split("\r\n")
        rows = [line.split("\t") for line in lines if line.count("\t") == 2]
        return {text.strip(): float(rating) for _, rating, text in rows if text.strip()}


class VaderMoviesSmall(VaderMovies):
    """Some short sentences."""

    sizes: ClassVar[dict[str, int]] = {"train": 24, "test": 56}
    only_short = True
    metadata = _metadata("VaderMovies.small", "3.3.2-24-56")


class VaderMoviesStudy(VaderMovies):
    """Enough short sentences for a study."""

    sizes: ClassVar[dict[str, int]] = {"train": 48, "test": 400}
    only_short = True
    metadata = _metadata("VaderMovies.study", "3.3.2-48-400")
