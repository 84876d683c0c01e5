"""A user's text as token ids that are text and nothing else."""

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
    """Tokenises as a tokenizer would if nothing had been added to its vocabulary.

    Added tokens (`<|im_end|>`, and also those that are not special: `<think>`, `<tool_call>`) are matched in a text
    before anything else. `split_special_tokens` switches that off for special ones only.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Copy the tokenizer without its added tokens.

        Raises:
            ConfigError: It is none of the `tokenizers` library, whose copies are exact.
        """
        backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        if not hasattr(backend, "to_str"):
            raise ConfigError(
                f"backbone: the tokenizer {tokenizer.name_or_path!r} is no fast tokenizer (tokenizer.json), so a text "
                "that spells a control token cannot be kept apart from one: choose another model"
            )
        self._added = set(tokenizer.get_added_vocab().values())
        self._plain = _without_added_tokens(backend)

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, none of which is an added token."""
        found = [encoding.ids for encoding in self._plain.encode_batch(list(texts), add_special_tokens=False)]
        return [
            ids if self._added.isdisjoint(ids) else self._in_pieces(text)
            for text, ids in zip(texts, found, strict=True)
        ]

    def _in_pieces(self, text: str) -> list[int]:
        """For a vocabulary that holds an added token as a word of its own: the text, cut where it comes out."""
        encoding = self._plain.encode(text, add_special_tokens=False)
        place = next(n for n, token in enumerate(encoding.ids) if token in self._added)
        start, end = encoding.offsets[place]
        if end - start < 2:  # a single character: there is no other way to write it
            return [token for token in encoding.ids if token not in self._added]
        middle = (start + end) // 2
        return [token for ids in self([text[:middle], text[middle:]]) for token in ids]


def plain_text_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> PlainTextTokenizer:
    """The `PlainTextTokenizer` of a tokenizer; made once, for copying takes a second with large vocabularies."""
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
