"""Explained similarities as an HTML page that needs no server, and as a view for the terminal."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grace_exp.encoder.explanation import ExplainedText, Explanation, Word
from grace_exp.tracking.atomic import atomic_path

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

PAGE_FILE = "explanation.html"
"""Name of the page in a run folder."""
CONTROL_NAMES = {
    "prompt_only": "without rationales",
    "empty": "with empty rationales",
    "repeated": "with each text repeated in place of its rationale",
    "swapped": "with the two rationales swapped",
}
_TERMINAL_PAIRS = 5


def write_page(path: Path, explanations: Sequence[Explanation], model: str) -> None:
    """Write one self-contained page: no script, no request.

    Args:
        path: The HTML file.
        explanations: One or several pairs of texts.
        model: The model's name, shown at the top.
    """
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    template = environment.get_template("explanation_page.html")
    page = template.render(model=model, pairs=[_shown(explanation) for explanation in explanations])
    with atomic_path(path) as unfinished:
        unfinished.write_text(page, encoding="utf-8")


def print_explanation(console: "Console", explanation: Explanation) -> None:
    """Print both texts with words shaded by contribution, the strongest pairs, and cosines with other rationales."""
    from rich.text import Text

    console.rule(f"cosine {explanation.cosine:.4f}")
    largest = _largest(explanation)
    for name, part in (("A", explanation.a), ("B", explanation.b)):
        shares = ", ".join(f"{kind} {value:.3f}" for kind, value in _shares(part).items())
        console.print(Text(f"{name}  contributions: {shares}", style="bold"))
        console.print(_shaded(part, largest))
    for pair in explanation.pairs[:_TERMINAL_PAIRS]:
        a, b = explanation.a.words[pair.a], explanation.b.words[pair.b]
        console.print(Text(f"  {pair.contribution:+.4f}  {a.text.strip()} ({a.kind}) - {b.text.strip()} ({b.kind})"))
    for name, cosine in explanation.controls.items():
        console.print(Text(f"  cosine {CONTROL_NAMES[name]}: {cosine:.4f}"))
    console.print(Text(f"  sum of all contributions: {explanation.total:.4f}"))


def _shaded(part: ExplainedText, largest: float) -> "Text":
    from rich.text import Text

    shaded = Text()
    for word in part.words:
        if word.kind in ("template", "special"):
            shaded.append(word.text.replace("\n", "\\n"), style="dim")
            continue
        strength = round(min(1.0, abs(word.contribution) / largest) * 200)
        color = (
            f"rgb(255,{255 - strength},{255 - strength})" if word.contribution > 0 else f"rgb(120,120,{55 + strength})"
        )
        shaded.append(word.text, style=f"black on {color}")
    return shaded


def _shares(part: ExplainedText) -> dict[str, float]:
    return {kind: part.share(kind) for kind in ("text", "rationale", "template", "special")}


def _largest(explanation: Explanation) -> float:
    words = [*explanation.a.words, *explanation.b.words]
    return max((abs(word.contribution) for word in words if word.kind in ("text", "rationale")), default=0) or 1.0


def _shown(explanation: Explanation) -> dict[str, Any]:
    """Return the values of a pair that the template needs."""
    largest = _largest(explanation)
    return {
        "cosine": explanation.cosine,
        "total": explanation.total,
        "texts": [
            {
                "name": name,
                "part": part,
                "shares": _shares(part),
                "words": [_shown_word(word, largest) for word in part.words],
            }
            for name, part in (("A", explanation.a), ("B", explanation.b))
        ],
        "pairs": [
            {
                "a": explanation.a.words[pair.a],
                "b": explanation.b.words[pair.b],
                "contribution": pair.contribution,
            }
            for pair in explanation.pairs
        ],
        "controls": [(CONTROL_NAMES[name], value) for name, value in explanation.controls.items()],
    }


def _shown_word(word: Word, largest: float) -> dict[str, Any]:
    step = min(10, round(10 * abs(word.contribution) / largest))
    return {
        "text": word.text.replace("\n", "\u23ce") if word.kind in ("template", "special") else word.text,
        "kind": word.kind,
        "sign": "plus" if word.contribution >= 0 else "minus",
        "step": step if word.kind in ("text", "rationale") else 0,
        "title": f"{word.contribution:+.5f} ({word.kind})",
    }
