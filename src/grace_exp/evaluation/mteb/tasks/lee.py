"""The Lee corpus: short news texts, and how similar people find each pair of them."""

from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from mteb.abstasks.sts import AbsTaskSTS

from grace_exp.evaluation.mteb.packaged import PackagedFiles
from grace_exp.evaluation.mteb.tasks.common import metadata

_TEXTS = "gensim/test/test_data/lee.cor"
_SIMILARITIES = "gensim/test/test_data/similarities0-1.txt"
LEE_FILES = PackagedFiles(
    "gensim==4.4.0",
    "wheel",
    {
        _TEXTS: "a878f9a58f6743c32985c56c2f2f75988386216b38a4023a01fd3bcf7884d93e",
        _SIMILARITIES: "23762bc6b728897144dda3d324a2c032dc1e059e1009806226d64b6dd123ed79",
    },
)


class LeePairs(AbsTaskSTS):
    """Spearman correlation of cosine and human score on the 1225 pairs of 50 documents (Lee et al. 2005)."""

    min_score = 0
    max_score = 1

    metadata = metadata(
        "LeePairs",
        "STS",
        description="Similarity of pairs of news texts of 45 to 126 words, 0 to 1, means over people",
        source="gensim",
        revision="4.4.0",
        reference="https://github.com/piskvorky/gensim/tree/4.4.0/gensim/test/test_data",
    )

    def __init__(self, cache_dir: Path) -> None:
        """Store the folder for downloaded files."""
        super().__init__()
        self._cache_dir = cache_dir

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        """Read the documents and the upper triangle of their similarities; the first call downloads them.

        Raises:
            MissingResourceError: The files cannot be downloaded.
        """
        files = LEE_FILES.fetch(self._cache_dir)
        texts = [line.strip() for line in files[_TEXTS].read_text(encoding="latin-1").splitlines()]
        similarity = np.loadtxt(files[_SIMILARITIES])
        first, second = np.triu_indices(len(texts), k=1)
        self.dataset = DatasetDict(
            {
                "test": Dataset.from_dict(
                    {
                        "sentence1": [texts[i] for i in first],
                        "sentence2": [texts[i] for i in second],
                        "score": similarity[first, second].tolist(),
                    }
                )
            }
        )
        self.data_loaded = True
