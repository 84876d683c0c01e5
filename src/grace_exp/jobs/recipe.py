"""Load the configured recipe, with the tokenizer and evaluation texts that its filters need."""

from collections.abc import Callable
from pathlib import Path

from grace_exp.config.root import GraceConfig
from grace_exp.data.leaks import HeldoutTexts
from grace_exp.data.prompts import PromptBuilder
from grace_exp.data.recipes import Recipe, load_recipe
from grace_exp.data.sources import LoadedSource
from grace_exp.data.token_lengths import TokenLengths, token_lengths


def configured_recipe(config: GraceConfig, rejects_path: Path | None) -> Recipe:
    """Load the data of a run.

    Args:
        config: The settings of the run.
        rejects_path: File in which bad rows are listed; None in processes other than the first.

    Raises:
        ConfigError, DataError, MissingResourceError: See `load_recipe`.
    """
    data = config.data
    return load_recipe(
        data,
        seed=config.seed,
        cache_dir=Path(config.cache_dir),
        rejects_path=rejects_path,
        lengths=length_counter(config) if data.effective_filters.needs_tokens else None,
        heldout=evaluation_texts(config) if data.leaks != "report" else None,
    )


def length_counter(
    config: GraceConfig, advance: Callable[[int], None] | None = None
) -> Callable[[LoadedSource], TokenLengths]:
    """Return a function that counts the tokens of a source's texts with the run's tokenizer and prompt.

    Args:
        config: The settings of the run.
        advance: Called with the number of rows that are newly done.
    """
    from grace_exp.policy.load_backbone import load_tokenizer

    tokenizer = load_tokenizer(config.backbone, Path(config.cache_dir))
    prompts = PromptBuilder(tokenizer, config.prompt, config.backbone.template_kwargs)
    identity = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else repr(tokenizer)
    return lambda source: token_lengths(source, prompts, identity, advance)


def evaluation_texts(config: GraceConfig) -> HeldoutTexts:
    """Return the texts of the configured evaluation.

    Raises:
        MissingResourceError: The evaluation's data is neither on this machine nor reachable.
    """
    from grace_exp.evaluation.heldout_texts import heldout_texts

    texts = heldout_texts(config.evaluation, Path(config.cache_dir))
    return HeldoutTexts.of(texts, config.data.leak_ngram)
