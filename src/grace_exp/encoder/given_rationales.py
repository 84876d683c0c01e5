"""Rationales that a call of the encoder gives, instead of having them written."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from grace_exp.data.lines import describe, undecodable
from grace_exp.data.plain_text import plain_text_tokenizer
from grace_exp.errors import ConfigError, DataError

if TYPE_CHECKING:
    from grace_exp.policy.load_backbone import Backbone

TokenIds = tuple[int, ...]


def given_ids(
    rationales: Sequence[str | Sequence[int]], texts: int, backbone: "Backbone", **writing: object
) -> list[TokenIds]:
    """Return the token ids of given rationales, one per text.

    Args:
        rationales: Texts, to which the end token is added, or token ids, which are used unchanged.
        texts: Number of texts of the call.
        backbone: Its tokenizer tokenises the texts.
        writing: Settings of the call that say how rationales are written; each must be None or 0.

    Raises:
        ConfigError: The call also says how rationales are written.
        DataError: There is not one rationale per text, or one is neither a text nor token ids of the model.
    """
    for name, value in writing.items():
        if value:
            raise ConfigError(f"encode: {name}={value} with rationales: given rationales are not written; leave it out")
    if isinstance(rationales, str) or len(rationales) != texts:
        raise DataError(
            f"encode: rationales is {describe(rationales)} for {texts} texts; expected a list with one rationale per "
            "text"
        )
    embeddings: Any = backbone.model.get_input_embeddings()
    size = int(embeddings.num_embeddings)
    tokenize = plain_text_tokenizer(backbone.tokenizer)
    found = []
    for number, rationale in enumerate(rationales):
        if isinstance(rationale, str):
            if reason := undecodable(rationale):
                raise DataError(f"encode: rationales[{number}]: {reason}")
            found.append((*tokenize([rationale])[0], backbone.end_token_ids[0]))
            continue
        ids = tuple(int(token) for token in rationale)
        if not ids or not all(0 <= token < size for token in ids):
            raise DataError(
                f"encode: rationales[{number}] must hold one token id or more, each from 0 to {size - 1}; an empty "
                f"rationale is the end token alone, [{backbone.end_token_ids[0]}], or the text ''"
            )
        found.append(ids)
    return found
