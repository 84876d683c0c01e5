"""Token ids of a user's text without control tokens."""

import json
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from grace_exp.errors import ConfigError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_known: "weakref.WeakKeyDictionary[PreTrainedTokenizerBase, PlainTextTokenizer]" = weakref.WeakKeyDictionary()


class PlainTextTokenizer:
    """Tokenises text as if no token had been added to the vocabulary.

    A tokenizer looks for added tokens in a text first: special ones (`<|im_end|>`) and others (`<think>`,
    `<tool_call>`).
    `split_special_tokens` turns that off for special ones only.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Copy the tokenizer without its added tokens.

        Raises:
            ConfigError: The tokenizer is not of the `tokenizers` library, so it cannot be copied exactly.
        """
        backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        if not hasattr(backend, "to_str"):
            raise ConfigError(
                f"backbone: the tokenizer {tokenizer.name_or_path!r} is not a fast tokenizer (tokenizer.json), so a "
                "text that spells a control token cannot be kept apart from one: choose another model"
            )
        self._added = set(tokenizer.get_added_vocab().values())
        self._plain = _without_added_tokens(backend)

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text; none of them is an added token."""
        found = [encoding.ids for encoding in self._plain.encode_batch(list(texts), add_special_tokens=False)]
        return [
            ids if self._added.isdisjoint(ids) else self._in_pieces(text)
            for text, ids in zip(texts, found, strict=True)
        ]

    def _in_pieces(self, text: str) -> list[int]:
        """Tokenise a text whose ordinary tokens include an added one: cut inside that token and tokenise both parts."""
        encoding = self._plain.encode(text, add_special_tokens=False)
        place = next(n for n, token in enumerate(encoding.ids) if token in self._added)
        start, end = encoding.offsets[place]
        if end - start < 2:  # a single character cannot be cut
            return [token for token in encoding.ids if token not in self._added]
        middle = (start + end) // 2
        return [token for ids in self([text[:middle], text[middle:]]) for token in ids]


def plain_text_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> PlainTextTokenizer:
    """Return the `PlainTextTokenizer` of a tokenizer; it is kept, because copying a large vocabulary takes a second."""
    if tokenizer not in _known:
        _known[tokenizer] = PlainTextTokenizer(tokenizer)
    return _known[tokenizer]


def _without_added_tokens(backend: Any) -> "Tokenizer":
    from tokenizers import Tokenizer

    settings = json.loads(backend.to_str())
    plain: Tokenizer = Tokenizer.from_str(
        json.dumps(settings | {"added_tokens": [], "truncation": None, "padding": None, "post_processor": None})
    )
    return plain
