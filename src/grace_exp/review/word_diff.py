"""Find the words of a text that changed."""

from difflib import SequenceMatcher
from typing import Literal

Kind = Literal["same", "removed", "added"]


def word_diff(before: str, after: str) -> list[tuple[Kind, str]]:
    """Compare two texts word by word.

    Returns:
        Runs of words in order: common and removed words make up `before`, common and added words `after`.
    """
    old, new = before.split(), after.split()
    found: list[tuple[Kind, str]] = []
    for what, i1, i2, j1, j2 in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if what == "equal":
            found.append(("same", " ".join(old[i1:i2])))
            continue
        if i1 < i2:
            found.append(("removed", " ".join(old[i1:i2])))
        if j1 < j2:
            found.append(("added", " ".join(new[j1:j2])))
    return found
