"""Texts of a corpus with their ids, read row by row, so that the corpus need not fit into memory."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from grace_exp.config.data import DataConfig, SourceConfig
from grace_exp.data.lines import BadRow
from grace_exp.data.rows import reject_line, texts_of
from grace_exp.data.sources import source_rows
from grace_exp.errors import DataError


class InputChanged(DataError):
    """A file has changed since it was checked."""


@dataclass(frozen=True, slots=True)
class CorpusRow:
    """One text.

    Attributes:
        id: Value of the id column; without one the row's number in the input, from 0, counting rejected rows too.
        text: Not empty.
    """

    id: int | str
    text: str

    def line(self) -> bytes:
        """Return the bytes of which digests are computed."""
        return json.dumps([self.id, self.text]).encode() + b"\n"


@dataclass(frozen=True)
class CorpusRows:
    """The rows of the files that a path or a glob names, ordered by file name.

    Attributes:
        path: File or glob.
        text: Column of the texts.
        id: Column of the ids; None: rows are numbered.
        reject: Leave out bad rows instead of stopping at the first one.
        cache_dir: Folder in which readers keep files.
    """

    path: str
    text: str
    id: str | None
    reject: bool
    cache_dir: Path

    def __iter__(self) -> Iterator[CorpusRow]:
        """Yield the good rows.

        Raises:
            DataError: A row is bad and `reject` is false; the message names file and line.
        """
        for found in self._checked():
            if isinstance(found, CorpusRow):
                yield found

    def check(self, rejects: Path | None) -> tuple[int, int, str]:
        """Read all rows once and count them.

        Args:
            rejects: File in which bad rows are listed, if there are any; None: not listed.

        Returns:
            The number of good rows, the number of bad rows, and a digest of ids and texts.

        Raises:
            DataError: A row is bad and `reject` is false, an id occurs twice, or no row is good.
        """
        digest, ids, good, bad = hashlib.sha256(), set[int | str](), 0, 0
        if rejects is not None:
            rejects.unlink(missing_ok=True)
        for found in self._checked():
            if not isinstance(found, CorpusRow):
                bad += 1
                if rejects is not None:
                    rejects.parent.mkdir(parents=True, exist_ok=True)
                    with rejects.open("a", encoding="utf-8") as file:
                        file.write(found)
                continue
            if self.id is not None:  # row numbers cannot repeat
                if found.id in ids:
                    raise DataError(f"job.id_column={self.id}: the id {found.id!r} occurs twice in {self.path}")
                ids.add(found.id)
            good += 1
            digest.update(found.line())
        if not good:
            raise DataError(f"job.input={self.path}: all {bad} rows are bad; they are listed in {rejects}")
        return good, bad, digest.hexdigest()

    def as_checked(self, digest: str) -> Iterator[CorpusRow]:
        """Yield the good rows again, and check that they are the same.

        Args:
            digest: The digest that `check` returned.

        Raises:
            InputChanged: At the end, if the rows differ from those that `check` read.
        """
        found, changed = hashlib.sha256(), f"job.input={self.path} has changed since it was checked"
        try:
            for row in self:
                found.update(row.line())
                yield row
        except DataError as error:
            raise InputChanged(f"{changed}: {error}") from error
        if found.hexdigest() != digest:
            raise InputChanged(f"{changed}: start the same command again")

    def _checked(self) -> Iterator[CorpusRow | str]:
        """Yield good rows, and bad rows as lines of a rejects file."""
        source = SourceConfig(path=self.path, text=self.text)
        data = DataConfig(name="embed", mode="unsupervised", sources={"input": source})
        wanted = (self.text,) if self.id is None else (self.text, self.id)
        for number, (label, unit, row) in enumerate(source_rows("input", source, data, wanted, self.cache_dir)):
            texts = row if isinstance(row, BadRow) else texts_of(row, source, data)
            identity = number if self.id is None or isinstance(row, BadRow) else row.fields.get(self.id)
            if not isinstance(texts, BadRow) and (isinstance(identity, bool) or not isinstance(identity, int | str)):
                texts = BadRow(
                    row.line, f"field {self.id!r} holds neither text nor a whole number; an id must be one of them", ""
                )
            if isinstance(texts, BadRow):
                if not self.reject:
                    raise DataError(
                        f"{label}, {unit} {texts.line}: {texts.reason}. Mend the row, or set data.on_bad_row=reject to "
                        "list such rows in rejects.jsonl and continue"
                    )
                yield reject_line(label, texts)
                continue
            assert isinstance(identity, int | str)
            yield CorpusRow(identity, str(texts["text"]))
