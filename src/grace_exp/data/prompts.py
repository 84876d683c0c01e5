"""Prompts as token ids: the chat template around a text, and where pooling starts.

A prompt is three runs of tokens: head + text + tail. Head and tail come from the chat template and are tokenised once.
The text is tokenised separately and never as control tokens. So a text that contains `<|im_end|>` cannot end its turn,
a long text is cut at its own end, and the boundary between the system prompt and the rest is known exactly.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from grace_exp.config.prompt import InstructionsConfig, PromptConfig
from grace_exp.data.batch import Role
from grace_exp.data.lines import undecodable
from grace_exp.data.plain_text import plain_text_tokenizer
from grace_exp.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARK = "grace\u2403exp"  # no template contains this text; tokenisers do not treat the control picture specially
_PROBES = ("A text.", "Zwei Wörter, 3 numbers\nand a line break", "¿Qué? 東京")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt ready for the model.

    Attributes:
        token_ids: The whole prompt, up to and including the header of the assistant's turn.
        pool_start: Index of the first token after the system prompt, where pooling starts.
        text_tokens_cut: Tokens of the user text that did not fit.
    """

    token_ids: tuple[int, ...]
    pool_start: int
    text_tokens_cut: int = 0


@dataclass(frozen=True, slots=True)
class _Frame:
    head: tuple[int, ...]
    tail: tuple[int, ...]
    pool_start: int


class RoleText(NamedTuple):
    """A text to build a prompt for: its role, and the source whose instructions apply; None: those of the prompt."""

    role: Role
    text: str
    source: str | None = None


class PromptBuilder:
    """Turns (role, text) into a `Prompt` with the model's own chat template.

    Pooling starts after the system message. It starts with the text if there is no separate system message: the
    template merges the system prompt into the user's turn, does not end it at a token boundary, or `config.system` is
    null.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        config: PromptConfig,
        template_kwargs: Mapping[str, Any] | None = None,
        *,
        allow_empty: bool = False,
        instructions: Mapping[str, InstructionsConfig] | None = None,
    ) -> None:
        """Render and tokenise the template of every role.

        Args:
            tokenizer: The backbone's tokenizer, with its chat template.
            config: System prompt, instructions and the token limit.
            template_kwargs: Variables of the chat template, such as `date_string`.
            instructions: Instructions of single sources, by name; for other roles those of `config` apply.
            allow_empty: Whether an empty text gets the bare template; in training it is an error.

        Raises:
            ConfigError: The tokenizer has no chat template, the template alters the text, template and text cannot be
                tokenised separately, or the template alone fills `config.max_tokens`.
        """
        self._tokenizer = tokenizer
        self._plain = plain_text_tokenizer(tokenizer)
        self._max_tokens = config.max_tokens
        self._allow_empty = allow_empty
        self._template_kwargs = dict(template_kwargs or {})
        if tokenizer.chat_template is None:
            raise ConfigError(
                f"backbone: the tokenizer {tokenizer.name_or_path!r} has no chat template; choose an instruct model"
            )
        everywhere = _by_role(config.instructions)
        self._frames: dict[tuple[str | None, Role], _Frame] = {}
        for source, by_role in [(None, everywhere), *((n, _by_role(i)) for n, i in (instructions or {}).items())]:
            for role in Role:
                self._frames[source, role] = self._frame(config.system, by_role[role] or everywhere[role])

    def __call__(self, role: Role, text: str) -> Prompt:
        """Return the prompt of one text. White space around the text is dropped."""
        return self.many([RoleText(role, text)])[0]

    def frame(self, role: Role) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        """Return what surrounds a text of the role: tokens before it, tokens after it, and where pooling starts."""
        frame = self._frames[None, role]
        return frame.head, frame.tail, frame.pool_start

    def many(self, texts: Iterable[RoleText | tuple[Role, str]]) -> list[Prompt]:
        """Return the prompts of several texts, tokenised in one call.

        Raises:
            DataError: A text is empty, and `allow_empty` is false.
        """
        role_texts = [RoleText(*given) for given in texts]
        role_texts = [given._replace(text=given.text.strip()) for given in role_texts]
        for role, text, _ in role_texts:
            if not text and not self._allow_empty:
                raise DataError(f"prompt: the {role} text is empty; a rationale needs something to read")
        return [
            self._join(self._frame_of(role, source), ids)
            for (role, _, source), ids in zip(
                role_texts, self._encode([given.text for given in role_texts]), strict=True
            )
        ]

    def _frame_of(self, role: Role, source: str | None) -> _Frame:
        return self._frames.get((source, role)) or self._frames[None, role]

    def text_lengths(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each uncut text in a prompt."""
        return [len(ids) for ids in self._encode([text.strip() for text in texts])]

    def room(self, role: Role) -> int:
        """Return how many tokens of a text fit into any prompt of the role, for every source."""
        frames = [frame for (_, other), frame in self._frames.items() if other is role]
        return self._max_tokens - max(len(frame.head) + len(frame.tail) for frame in frames)

    def text_span(self, role: Role, prompt: Prompt) -> tuple[int, int]:
        """Return the positions in a prompt of the user text's first token and of the first token after the text."""
        frame = self._frames[None, role]
        return len(frame.head), len(prompt.token_ids) - len(frame.tail)

    def text_ids(self, role: Role, prompt: Prompt) -> tuple[int, ...]:
        """Return the tokens of the user's text in a prompt of this builder, without those that were cut."""
        return prompt.token_ids[slice(*self.text_span(role, prompt))]

    def _join(self, frame: _Frame, text_ids: list[int]) -> Prompt:
        room = self._max_tokens - len(frame.head) - len(frame.tail)
        kept = text_ids[:room]
        return Prompt((*frame.head, *kept, *frame.tail), frame.pool_start, len(text_ids) - len(kept))

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return self._plain(texts)  # control tokens spelled in a user's text stay plain text

    def _encode_template(self, part: str) -> list[int]:
        ids: list[int] = self._tokenizer(part, add_special_tokens=False)["input_ids"]
        return ids

    def _render(self, messages: list[dict[str, str]], *, generation: bool) -> str:
        from jinja2.exceptions import TemplateError, TemplateSyntaxError, UndefinedError

        try:
            rendered = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=generation, **self._template_kwargs
            )
        except TemplateSyntaxError as error:
            raise self._template_problem(f"is broken (line {error.lineno}: {error})") from error
        except UndefinedError as error:
            raise self._template_problem(
                f"uses a variable that it is not given ({error}): give it in backbone.template_kwargs"
            ) from error
        except TemplateError:
            raise  # templates refuse a role or an order of roles in this way
        except Exception as error:  # errors of Python in the template, or of transformers
            raise self._template_problem(f"cannot be rendered: {str(error).partition(chr(10))[0]}") from error
        assert isinstance(rendered, str)  # tokenize=False
        return rendered

    def _template_problem(self, what: str) -> ConfigError:
        return ConfigError(f"backbone: the chat template of {self._tokenizer.name_or_path!r} {what}")

    def _render_if_allowed(self, messages: list[dict[str, str]], *, generation: bool) -> str | None:
        from jinja2.exceptions import TemplateError, UndefinedError

        try:
            return self._render(messages, generation=generation)
        except TemplateError:
            return None
        except ConfigError as problem:
            if isinstance(problem.__cause__, UndefinedError):  # the template looks for a message of another role
                return None
            raise

    def _render_always(self, messages: list[dict[str, str]]) -> str:
        from jinja2.exceptions import TemplateError

        try:
            return self._render(messages, generation=True)
        except TemplateError as error:
            raise self._template_problem(f"refuses a conversation with one user's turn: {error}") from error

    def _frame(self, system: str | None, instruction: str | None) -> _Frame:
        system_text = "\n".join(part for part in (system, instruction) if part)
        if reason := undecodable(system_text):
            raise ConfigError(f"prompt: the system prompt with its instruction: {reason}")
        head, tail, system_only = self._template_parts(system_text)
        head_ids, tail_ids = self._encode_template(head), self._encode_template(tail)
        system_ids = self._encode_template(system_only) if system_only is not None else None
        pool_start = len(system_ids) if system_ids and head_ids[: len(system_ids)] == system_ids else len(head_ids)
        if self._max_tokens <= len(head_ids) + len(tail_ids):
            raise ConfigError(
                f"prompt.max_tokens = {self._max_tokens}: the chat template with the system prompt alone takes "
                f"{len(head_ids) + len(tail_ids)} tokens; raise it"
            )
        for probe, ids in zip(_PROBES, self._encode(list(_PROBES)), strict=True):
            if head_ids + ids + tail_ids != self._encode_template(head + probe + tail):
                raise ConfigError(
                    f"backbone: the tokenizer {self._tokenizer.name_or_path!r} does not split between chat template "
                    f"and text (seen with {probe!r}); use a model with a byte-level BPE tokenizer such as Qwen, Llama 3"
                    " or SmolLM2"
                )
        return _Frame(tuple(head_ids), tuple(tail_ids), pool_start)

    def _template_parts(self, system: str) -> tuple[str, str, str | None]:
        """Return the rendered text before and after the user's text, and the system message (None without one)."""
        user = {"role": "user", "content": _MARK}
        if not system:
            return (*self._split(self._render_always([user])), None)
        message = {"role": "system", "content": system}
        whole = self._render_if_allowed([message, user], generation=True)
        if whole is None or system.strip() not in whole:  # no system role: the system prompt begins the user's turn
            merged = {"role": "user", "content": f"{system}\n{_MARK}"}
            return (*self._split(self._render_always([merged])), None)
        head, tail = self._split(whole)
        alone = self._render_if_allowed([message], generation=False)
        # A template that puts the system prompt into the user's turn renders it alone as nothing, or as a start token.
        own_message = alone is not None and system.strip() in alone and head.startswith(alone)
        return head, tail, alone if own_message else None

    def _split(self, rendered: str) -> tuple[str, str]:
        if rendered.count(_MARK) != 1:
            raise ConfigError(
                f"backbone: the chat template of {self._tokenizer.name_or_path!r} does not show the user's text "
                "unchanged and once"
            )
        head, tail = rendered.split(_MARK)
        return head, tail


def _by_role(instructions: InstructionsConfig) -> dict[Role, str | None]:
    return {Role(role): text for role, text in vars(instructions).items()}
