"""Which words make two texts similar: the cosine of mean-pooled embeddings as an exact sum over pairs of tokens.

An embedding is the mean of token vectors h_i, so the cosine of two embeddings a and b is

    cos(a, b) = sum over i, j of  h_i . g_j / (n m |a| |b|)

over the n pooled tokens of one text and the m of the other. A word's contribution is the sum over its tokens and all
tokens of the other text. The contributions of all words of either text sum to the cosine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from grace_exp.data.batch import Role
from grace_exp.encoder.control_rationales import empty, repeated
from grace_exp.encoder.modes import Mode, role_of, writes
from grace_exp.errors import ConfigError
from grace_exp.policy.packing import Region, TextSequence

if TYPE_CHECKING:
    from grace_exp.data.prompts import Prompt, PromptBuilder
    from grace_exp.encoder.encoder import GraceEncoder

WordKind = Literal["text", "rationale", "template", "special"]
"""Where a word is: in the user's text, in the rationale, in the chat template around them, or a control token."""

CONTROLS = ("prompt_only", "empty", "repeated", "swapped")
"""Control cosines: without rationales, with empty ones, with each text repeated in place of its rationale, and with the
two rationales swapped."""

_STRONGEST = 20


@dataclass(frozen=True, slots=True)
class Word:
    """A word as the model reads it.

    Attributes:
        text: The word with the white space before it.
        kind: Where it is.
        contribution: Its part of the cosine; the parts of all words of a text sum to the cosine.
        tokens: Number of its tokens.
    """

    text: str
    kind: WordKind
    contribution: float
    tokens: int


@dataclass(frozen=True)
class ExplainedText:
    """One of the two texts.

    Attributes:
        text: The text as given.
        role: The role, which chooses the prompt's instruction.
        rationale: Its rationale; empty without one.
        words: The pooled words in reading order.
        not_pooled: Number of tokens before the pooled ones (the system prompt); they contribute nothing.
        text_tokens_cut: Tokens of the text that did not fit into the prompt.
    """

    text: str
    role: str
    rationale: str
    words: tuple[Word, ...]
    not_pooled: int
    text_tokens_cut: int

    def share(self, kind: WordKind) -> float:
        """Sum of the contributions of the words of one kind."""
        return sum(word.contribution for word in self.words if word.kind == kind)


@dataclass(frozen=True, slots=True)
class WordPair:
    """Two words, by their positions in `a.words` and `b.words`, and what the pair adds to the cosine."""

    a: int
    b: int
    contribution: float


@dataclass(frozen=True)
class Explanation:
    """The cosine of two embeddings, split into contributions.

    Attributes:
        cosine: Cosine of the two embeddings from `encode`.
        total: Sum of all contributions; equals `cosine` up to rounding.
        a: The first text.
        b: The second text.
        pairs: The pairs of words of texts and rationales with the largest contributions, largest first; template and
            punctuation are left out.
        controls: Cosines with other rationales, by the names in `CONTROLS`; empty if no rationale was written.
    """

    cosine: float
    total: float
    a: ExplainedText
    b: ExplainedText
    pairs: tuple[WordPair, ...]
    controls: dict[str, float]


@dataclass(frozen=True)
class _PreparedText:
    """A text ready for the forward."""

    text: str
    role: Role
    prompt: "Prompt"
    builder: "PromptBuilder"
    completion_ids: tuple[int, ...]
    rationale: str

    def sequence(self, completion_ids: Sequence[int] | None = None) -> TextSequence:
        return TextSequence(self.prompt, self.completion_ids if completion_ids is None else tuple(completion_ids))


def explain_pair(
    encoder: "GraceEncoder",
    a: str,
    b: str,
    *,
    role_a: Role | str = Role.QUERY,
    role_b: Role | str = Role.POSITIVE,
    mode: Mode | None = None,
    max_tokens: int | None = None,
    temperature: float = 0.0,
    seed: int = 0,
) -> Explanation:
    """Split the cosine of two texts into contributions of their words.

    Args:
        encoder: The encoder, which writes the rationales and embeds.
        a: The first text.
        b: The second text.
        role_a: Its role, as in `encode`.
        role_b: Role of the second text.
        mode: Which roles get a rationale; None: as in the model's training.
        max_tokens: Token limit of a rationale; None: the encoder's own.
        temperature: Sampling temperature; 0 is greedy.
        seed: Seed of sampling.

    Raises:
        ConfigError: `backbone.pooling.method` is not `mean`: only a mean is a sum over tokens.
        DataError: `a` or `b` is not a text.
    """
    if encoder.center is not None:
        raise ConfigError(
            "backbone.pooling.transform=center: a cosine of centred embeddings is not a sum over the "
            "words of both texts; load the "
            "model with pooling=PoolingConfig() to explain it uncentred (job=explain: with job.resume)"
        )
    method = encoder.policy.pooling.method
    if method != "mean":
        raise ConfigError(
            f"backbone.pooling.method={method}: a cosine can be explained for pooling 'mean' only, where the embedding "
            "is a sum over tokens; choose a model that was trained with it"
        )
    settings: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    texts = [
        _prepare(encoder, text, role_of(role, None), mode or encoder.mode, settings)
        for text, role in ((a, role_a), (b, role_b))
    ]
    region: Region = encoder.policy.pooling.region
    regions: list[Region] = [region if prepared.completion_ids else "text" for prepared in texts]
    states, words = [], []
    for prepared, pooled in zip(texts, regions, strict=True):
        hidden, positions = encoder.policy.token_states(prepared.sequence(), pooled)
        states.append(hidden[:, : encoder.truncate_dim].double())
        words.append(_words(encoder.tokenizer, prepared, positions.tolist()))
    left, right = states
    means = left.mean(dim=0), right.mean(dim=0)
    scale = len(left) * len(right) * means[0].norm() * means[1].norm()
    by_token = (left @ right.T / scale).cpu().numpy()
    by_word = np.add.reduceat(np.add.reduceat(by_token, _starts(words[0]), axis=0), _starts(words[1]), axis=1)
    explained = [
        ExplainedText(
            prepared.text,
            prepared.role.value if prepared.role is not Role.POSITIVE else "document",
            prepared.rationale,
            tuple(
                Word(text, kind, float(value), tokens)
                for (text, kind, tokens), value in zip(found, by_word.sum(axis=other), strict=True)
            ),
            not_pooled=prepared.prompt.pool_start,
            text_tokens_cut=prepared.prompt.text_tokens_cut,
        )
        for prepared, found, other in zip(texts, words, (1, 0), strict=True)
    ]
    cosine = torch.nn.functional.cosine_similarity(means[0].float(), means[1].float(), dim=0)
    return Explanation(
        cosine=float(cosine),
        total=float(by_word.sum()),
        a=explained[0],
        b=explained[1],
        pairs=_strongest(by_word, explained[0].words, explained[1].words),
        controls=_controls(encoder, texts, region) if all(prepared.completion_ids for prepared in texts) else {},
    )


def _prepare(encoder: "GraceEncoder", text: str, role: Role, mode: Mode, settings: dict[str, Any]) -> _PreparedText:
    encoder.encode(text, role=role, mode=mode, show_progress_bar=False, **settings)
    ids = tuple(encoder.rationale_ids[0]) if encoder.rationale_ids and writes(mode, role) else ()
    builder = encoder.prompt_builder(role)
    return _PreparedText(text, role, builder(role, text), builder, ids, encoder.rationales[0] if ids else "")


def _words(tokenizer: Any, prepared: _PreparedText, positions: Sequence[int]) -> list[tuple[str, WordKind, int]]:
    """Return the words at the pooled positions, in order: text, kind, number of tokens."""
    ids = (*prepared.prompt.token_ids, *prepared.completion_ids)
    first, behind = prepared.builder.text_span(prepared.role, prepared.prompt)
    control = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())

    def kind_at(position: int) -> WordKind:
        if ids[position] in control:
            return "special"
        if position >= len(prepared.prompt.token_ids):
            return "rationale"
        return "text" if first <= position < behind else "template"

    words: list[tuple[str, WordKind, int]] = []
    pending: list[int] = []  # tokens of an incomplete character
    for place, position in enumerate(positions):
        kind = kind_at(position)
        pending.append(ids[position])
        piece: str = tokenizer.decode(pending, clean_up_tokenization_spaces=False)
        following = positions[place + 1] if place + 1 < len(positions) else None
        if piece.endswith("\N{REPLACEMENT CHARACTER}") and following is not None and kind_at(following) == kind:
            continue
        joins = words and kind == words[-1][1] != "special" and piece[:1].isalnum() and words[-1][0][-1:].isalnum()
        if joins:
            words[-1] = (words[-1][0] + piece, kind, words[-1][2] + len(pending))
        else:
            words.append((piece, kind, len(pending)))
        pending = []
    return words


def _starts(words: Sequence[tuple[str, WordKind, int]]) -> NDArray[np.int64]:
    """Return the position of each word's first token among the pooled tokens, [words]."""
    return np.cumsum([0, *(tokens for _, _, tokens in words[:-1])])


def _strongest(by_word: NDArray[np.float64], a: Sequence[Word], b: Sequence[Word]) -> tuple[WordPair, ...]:
    rows, columns = ([place for place, word in enumerate(words) if _is_read(word)] for words in (a, b))
    pairs = [WordPair(row, column, float(by_word[row, column])) for row in rows for column in columns]
    return tuple(sorted(pairs, key=lambda pair: -pair.contribution)[:_STRONGEST])


def _is_read(word: Word) -> bool:
    return word.kind in ("text", "rationale") and any(map(str.isalnum, word.text))


def _controls(encoder: "GraceEncoder", texts: Sequence[_PreparedText], region: Region) -> dict[str, float]:
    """Return cosines of the two texts with other rationales, by name."""
    end = encoder.backbone.end_token_ids[0]
    rationales: dict[str, list[Sequence[int]]] = {
        "empty": [empty(end)] * 2,
        "repeated": [repeated(prepared.builder.text_ids(prepared.role, prepared.prompt), end) for prepared in texts],
        "swapped": [prepared.completion_ids for prepared in reversed(texts)],
    }
    cosines = {"prompt_only": _cosine(encoder, [TextSequence(prepared.prompt) for prepared in texts], "text")}
    for name, completions in rationales.items():
        sequences = [prepared.sequence(ids) for prepared, ids in zip(texts, completions, strict=True)]
        cosines[name] = _cosine(encoder, sequences, region)
    return cosines


def _cosine(encoder: "GraceEncoder", sequences: Sequence[TextSequence], region: Region) -> float:
    vectors = encoder.policy.embed(sequences, (region,))[region][:, : encoder.truncate_dim]
    return float(torch.nn.functional.cosine_similarity(vectors[0], vectors[1], dim=0))
