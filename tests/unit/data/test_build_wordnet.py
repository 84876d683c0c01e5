import importlib.util
import itertools
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "build_wordnet_triplets.py"

LICENCE = "  1 This is a licence.  \n  2   \n  10 of two lines  \n"
NOUNS = [
    '00000001 03 n 01 alpha 0 001 @ 00000009 n 0000 | the first of them; "alpha comes before all"; "an alpha"',
    "00000002 03 n 02 beta 0 Beta_Test 0 002 @ 00000009 n 0000 ~ 00000005 n 0000 "
    '| the second of them; "this is a beta of ours"',
    "00000003 03 n 01 beta 0 000 | another thing altogether",
    "00000005 03 n 01 beta 0 000 | a thing linked from the second",
    '00000006 03 n 01 gamma 0 000 | odd one out; "who said this"- A. Author',
    "00000009 03 n 01 letter 0 000 | what they all are",
]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_wordnet_triplets", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def write_dictionary(folder: Path) -> None:
    folder.mkdir()
    for name in ("data.verb", "data.adj", "data.adv"):
        (folder / name).write_text(LICENCE)
    (folder / "data.noun").write_text(LICENCE + "".join(line + "  \n" for line in NOUNS))


def test_a_line_gives_lemmas_links_definition_and_examples(script: ModuleType) -> None:
    synset = script.parse_line(NOUNS[1])
    assert synset.key == "00000002-n"
    assert synset.lemmas == ("beta", "beta test")
    assert synset.hypernyms == {"00000009-n"}
    assert synset.linked == {"00000009-n", "00000005-n"}
    assert synset.definition == "the second of them"
    assert synset.examples == ("this is a beta of ours",)
    assert script.parse_line("00000007 00 s 01 ready(p) 0 000 | in order  ").lemmas == ("ready",)
    assert script.parse_line(NOUNS[4]) is None  # an attribution stands between the quotes


def test_negatives_are_other_senses_else_siblings_never_linked_synsets(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "split_of", lambda synset: "train")
    synsets = [synset for line in NOUNS if (synset := script.parse_line(line)) is not None]
    rows = {row["synset"]: row for row in script.build(synsets)["train"]}
    assert set(rows) == {"00000001-n", "00000002-n"}
    assert rows["00000001-n"]["query"] == "alpha comes before all"  # the other example is too short
    assert rows["00000001-n"]["negative"] == "the second of them"  # a sibling: alpha has one sense
    assert rows["00000002-n"]["negative"] == "another thing altogether"  # a sense of beta that is not linked


def test_synsets_whose_lemmas_are_dealt_to_different_splits_are_dropped(script: ModuleType) -> None:
    def synset(*lemmas: str) -> object:
        return script.Synset("1-n", 5, lemmas, frozenset(), frozenset(), "", ())

    words = [f"word{n}" for n in range(3000)]
    dealt = {word: script.split_of(synset(word)) for word in words}
    counts = [list(dealt.values()).count(split) / len(words) for split in ("train", "dev", "test")]
    assert counts == pytest.approx([0.70, 0.15, 0.15], abs=0.03)  # over 3 standard deviations
    for first, second in itertools.pairwise(words):
        same = dealt[first] == dealt[second]
        assert script.split_of(synset(first, second)) == (dealt[first] if same else None)


def test_class_rows_are_held_out_nouns_of_the_chosen_classes(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def synset(number: int, word: str, definition: str) -> object:
        return script.Synset(f"{number}-{word}-n", number, (word,), frozenset(), frozenset(), definition, ())

    text = "a long enough definition of the {}"
    synsets = [synset(number, f"w{i}", text.format(f"{number} {i}")) for number in (3, 5, 13) for i in range(80)]
    synsets += [synset(5, "short", "too short"), *[synset(5, f"twice{i}", text.format("same thing")) for i in range(2)]]
    monkeypatch.setattr(script, "split_of", lambda synset: "train" if synset.lemmas[0] == "w7" else "test")
    rows = script.build_classes(synsets)
    assert [sum(row["label"] == name for row in rows) for name in ("animal", "food")] == [60, 60]
    assert len(rows) == len({row["text"] for row in rows}) == 120
    assert not any("same thing" in row["text"] or row["text"].endswith(" 7") for row in rows)
    assert {row["label"] for row in rows[:20]} == {"animal", "food"}  # mixed: the first rows are a fair sample


def test_files_are_written_and_checked(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dictionary(tmp_path / "dict")
    (tmp_path / "out").mkdir()
    arguments = ["build", "--dictionary", str(tmp_path / "dict"), "--target", str(tmp_path / "out")]
    monkeypatch.setattr(script, "split_of", lambda synset: "train")
    monkeypatch.setattr(sys, "argv", arguments)
    script.main()
    assert (tmp_path / "out" / "LICENSE").read_text() == "This is a licence.\n\nof two lines\n"
    rows = [json.loads(line) for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    assert [row["synset"] for row in rows].count("00000002-n") == 1

    monkeypatch.setattr(sys, "argv", [*arguments, "--check"])
    script.main()
    (tmp_path / "out" / "dev.jsonl").write_text("{}\n")
    with pytest.raises(SystemExit, match=r"dev\.jsonl in .* differ"):
        script.main()


def test_without_a_dictionary_the_script_says_what_to_install(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["build", "--dictionary", str(tmp_path)])
    with pytest.raises(SystemExit, match="apt-get install wordnet-base"):
        script.main()
