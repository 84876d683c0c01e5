"""Builds the sample of WordNet 3.0 that ships with the package (src/grace_exp/data/wordnet).

    apt-get install wordnet-base
    python scripts/build_wordnet_triplets.py            # writes train, dev, test and classes.jsonl, and LICENSE
    python scripts/build_wordnet_triplets.py --check    # compares them with what would be written

Rows: the query is a usage example of a synset, and the positive is the synset's definition. The negative is the
definition of another sense of one of its words (same part of speech). If there is none, it is that of a sibling (a
synset with the same hypernym). Synsets that WordNet links directly to the positive's synset are not used as negatives.

Splits: a hash of a lemma's letters (case-folded) assigns it to train, dev or test. A synset belongs to a split only if
all its lemmas do. Other synsets are dropped. Queries, positives and negatives of a split all
come from its own synsets, so no lemma of one split occurs in a synset of another. (Joining synsets that share a lemma
instead would put a third of WordNet into one component.) Texts that occur in two synsets are dropped as well. A synset
gives at most one row.

classes.jsonl is for clustering. It has definitions of nouns of the test split, with WordNet's class (the lexicographer
file, https://wordnet.princeton.edu/documentation/lexnames5wn). All classes have the same number of rows.

The result does not depend on the order of the dictionary or on a random generator.

Format of the dictionary: https://wordnet.princeton.edu/documentation/wndb5wn
"""

import argparse
import hashlib
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

DICTIONARY = Path("/usr/share/wordnet")
TARGET = Path(__file__).resolve().parents[1] / "src/grace_exp/data/wordnet"
FILES = ("data.noun", "data.verb", "data.adj", "data.adv")
HYPERNYMS = ("@", "@i")
SHARES = (("train", 0.70), ("dev", 0.15), ("test", 0.15))
ROWS = {"train": 3600, "dev": 500, "test": 500}
QUERY_WORDS = range(4, 31)
GLOSS_WORDS = range(3, 41)
CLASSES = {
    5: "animal",
    6: "artifact",
    8: "body",
    10: "communication",
    13: "food",
    15: "location",
    18: "person",
    20: "plant",
    27: "substance",
    28: "time",
}
CLASS_ROWS = 60
CLASS_WORDS = range(6, 26)

_GLOSS = re.compile(r'(?P<definition>[^"`]+?)(?P<examples>(?:\s*;\s*"[^"]+")*)\s*;?\s*')
_EXAMPLE = re.compile(r'"([^"]+)"')
_MARKER = re.compile(r"\((?:a|p|ip)\)$")  # syntactic marker behind an adjective
_NUMBER = re.compile(r"^ +\d+ ")  # the licence's lines are numbered: "  1 This software and ..."


@dataclass(frozen=True)
class Synset:
    """One line of a data file; `key` is the offset with the part of speech, such as `02084071-n`."""

    key: str
    lexicographer: int
    lemmas: tuple[str, ...]
    hypernyms: frozenset[str]
    linked: frozenset[str]
    definition: str
    examples: tuple[str, ...]


def parse_line(line: str) -> Synset | None:
    """Read one synset; None if definition and examples cannot be separated (attributions, stray quotes)."""
    head, _, gloss = line.partition(" | ")
    fields = head.split()
    word_count = int(fields[3], 16)
    words = fields[4 : 4 + 2 * word_count : 2]
    pointers = fields[5 + 2 * word_count :][: 4 * int(fields[4 + 2 * word_count])]
    links = [
        (symbol, _key(offset, pos))
        for symbol, offset, pos in zip(pointers[::4], pointers[1::4], pointers[2::4], strict=True)
    ]
    parts = _GLOSS.fullmatch(gloss.strip())
    if parts is None:
        return None
    return Synset(
        key=_key(fields[0], fields[2]),
        lexicographer=int(fields[1]),
        lemmas=tuple(dict.fromkeys(_MARKER.sub("", word).replace("_", " ").casefold() for word in words)),
        hypernyms=frozenset(key for symbol, key in links if symbol in HYPERNYMS),
        linked=frozenset(key for _, key in links),
        definition=parts["definition"].strip(),
        examples=tuple(example.strip() for example in _EXAMPLE.findall(parts["examples"])),
    )


def _key(offset: str, pos: str) -> str:
    return f"{offset}-{'a' if pos == 's' else pos}"


def _rank(*parts: str) -> float:
    """Return a number in [0, 1) that depends on the parts only."""
    return int.from_bytes(hashlib.sha256("\n".join(parts).encode()).digest()[:6]) / 2**48


def split_of(synset: Synset) -> str | None:
    """Return the split of all lemmas; None if they belong to different splits."""
    splits = {_split_of_lemma(lemma) for lemma in synset.lemmas}
    return splits.pop() if len(splits) == 1 else None


def _split_of_lemma(lemma: str) -> str:
    rank = _rank("split", lemma)
    for name, share in SHARES[:-1]:
        if rank < share:
            return name
        rank -= share
    return SHARES[-1][0]


def _is_clean(text: str, words: range) -> bool:
    return (
        len(text.split()) in words
        and not set("\"`_<>|;'") & {text[0], text[-1]}
        and "`" not in text
        and text.count("(") == text.count(")")
        and text.isascii()
        and text.isprintable()
    )


def build(synsets: Sequence[Synset]) -> dict[str, list[dict[str, object]]]:
    """Return the rows of every split, ordered by a hash, so that the first rows are a random sample."""
    texts = Counter(text for synset in synsets for text in {synset.definition, *synset.examples})
    usable = [s for s in synsets if texts[s.definition] == 1 and _is_clean(s.definition, GLOSS_WORDS)]
    members = defaultdict(list)
    for synset in usable:
        if (split := split_of(synset)) is not None:
            members[split].append(synset)
    return {name: _rows(members[name], texts)[: ROWS[name]] for name, _ in SHARES}


def _rows(synsets: Sequence[Synset], texts: Counter[str]) -> list[dict[str, object]]:
    by_lemma, by_hypernym = defaultdict(list), defaultdict(list)
    for synset in synsets:
        for lemma in synset.lemmas:
            by_lemma[lemma, synset.key[-1]].append(synset)
        for hypernym in synset.hypernyms:
            by_hypernym[hypernym].append(synset)
    rows: list[dict[str, object]] = []
    for synset in sorted(synsets, key=lambda s: _rank("row", s.key)):
        queries = [q for q in synset.examples if texts[q] == 1 and _is_clean(q, QUERY_WORDS)]
        senses = [other for lemma in synset.lemmas for other in by_lemma[lemma, synset.key[-1]]]
        siblings = [other for hypernym in synset.hypernyms for other in by_hypernym[hypernym]]
        negative = _choose(synset, senses) or _choose(synset, siblings)
        if queries and negative:
            query = min(queries, key=lambda q: _rank("query", q))
            rows.append(
                {
                    "query": query,
                    "positive": synset.definition,
                    "negative": negative.definition,
                    "synset": synset.key,
                    "lemmas": synset.lemmas,
                    "negative_lemmas": negative.lemmas,
                }
            )
    return rows


def build_classes(synsets: Sequence[Synset]) -> list[dict[str, str]]:
    """Return rows of (text, label, synset), `CLASS_ROWS` of each class, ordered by a hash."""
    texts = Counter(synset.definition for synset in synsets)
    rows: list[dict[str, str]] = []
    for number, name in CLASSES.items():
        usable = [
            synset
            for synset in synsets
            if synset.lexicographer == number
            and texts[synset.definition] == 1
            and _is_clean(synset.definition, CLASS_WORDS)
            and split_of(synset) == "test"
        ]
        chosen = sorted(usable, key=lambda s: _rank("class", s.key))[:CLASS_ROWS]
        rows += [{"text": synset.definition, "label": name, "synset": synset.key} for synset in chosen]
    # Order by another hash than the selection's, which would put the rows of the classes with most synsets first.
    return sorted(rows, key=lambda row: _rank("class order", row["synset"]))


def _choose(synset: Synset, others: Iterable[Synset]) -> Synset | None:
    unlinked = [o for o in others if o.key not in {synset.key, *synset.linked} and synset.key not in o.linked]
    return min(unlinked, key=lambda o: _rank("negative", synset.key, o.key), default=None)


def read_dictionary(folder: Path) -> tuple[list[Synset], str]:
    """Return all synsets, and the licence text at the start of every data file."""
    synsets: list[Synset] = []
    licence: list[str] = []
    for name in FILES:
        lines = (folder / name).read_text("ascii").splitlines()
        header = [line for line in lines if line.startswith("  ")]
        licence = [_NUMBER.sub("", line).rstrip() for line in header]
        synsets += [synset for line in lines[len(header) :] if (synset := parse_line(line)) is not None]
    return synsets, "\n".join(licence) + "\n"


def main() -> None:
    """Write the files, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dictionary", type=Path, default=DICTIONARY, help="folder of data.noun, data.verb, ...")
    parser.add_argument("--target", type=Path, default=TARGET, help="folder to write to")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the files differ")
    options = parser.parse_args()
    if not (options.dictionary / FILES[0]).is_file():
        sys.exit(f"no WordNet dictionary in {options.dictionary}: apt-get install wordnet-base, or give --dictionary")
    synsets, licence = read_dictionary(options.dictionary)
    contents = {"LICENSE": licence}
    for split, rows in build(synsets).items():
        contents[f"{split}.jsonl"] = "".join(json.dumps(row) + "\n" for row in rows)
    contents["classes.jsonl"] = "".join(json.dumps(row) + "\n" for row in build_classes(synsets))
    if options.check:
        stale = [n for n, text in contents.items() if _bytes_of(options.target / n) != text.encode()]
        if stale:
            sys.exit(f"{', '.join(stale)} in {options.target} differ from what {Path(__file__).name} writes")
        return
    for name, text in contents.items():
        (options.target / name).write_bytes(text.encode())
        sys.stdout.write(f"{options.target / name}: {text.count(chr(10))} lines, {len(text.encode())} bytes\n")


def _bytes_of(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


if __name__ == "__main__":
    main()
