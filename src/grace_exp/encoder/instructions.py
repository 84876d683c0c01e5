"""Instructions by name, and a prompt builder for each."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from grace_exp.config.prompt import InstructionsConfig, PromptConfig
from grace_exp.data.batch import Role
from grace_exp.data.prompts import PromptBuilder
from grace_exp.encoder.modes import names_role
from grace_exp.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Instructions:
    """Instructions after the system prompt, by name (as `prompts` of sentence-transformers) or by the text's role.

    Attributes:
        prompts: Instructions by name. Those of `query` and `document` are used for these roles by default.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", config: PromptConfig, template_kwargs: Mapping[str, Any]
    ) -> None:
        """Start with the instructions of `config`."""
        self._tokenizer = tokenizer
        self._config = config
        self._template_kwargs = template_kwargs
        self._builders: dict[str | None, PromptBuilder] = {}
        known = {"query": config.instructions.query, "document": config.instructions.positive}
        self.prompts = {name: text for name, text in known.items() if text}

    def builder(self, prompt: str | None, prompt_name: str | None, role: Role) -> PromptBuilder:
        """Return a builder with the instruction of a call: the given one, the named one, or the role's.

        Raises:
            ConfigError: There is no prompt of that name.
        """
        text = prompt if prompt is not None else self._text(prompt_name, role)
        if text not in self._builders:
            everywhere = InstructionsConfig(query=text, positive=text, negative=text)
            config = replace(self._config, instructions=everywhere)
            self._builders[text] = PromptBuilder(self._tokenizer, config, self._template_kwargs, allow_empty=True)
        return self._builders[text]

    def _text(self, name: str | None, role: Role) -> str | None:
        if name is not None and not names_role(name):
            if name not in self.prompts:
                known = ", ".join(map(repr, dict.fromkeys([*self.prompts, "query", "document"])))
                raise ConfigError(
                    f"encode: prompt_name={name!r} is not one of {known}; add it to the encoder's `prompts`"
                )
            return self.prompts[name]
        if role is Role.NEGATIVE:
            return self._config.instructions.negative
        return self.prompts.get("query" if role is Role.QUERY else "document")
