"""No id of an added token comes from a text."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from grace_exp.config.prompt import PromptConfig
from grace_exp.data.batch import Role
from grace_exp.data.plain_text import plain_text_tokenizer
from grace_exp.data.prompts import PromptBuilder
from grace_exp.errors import ConfigError

ADDED = ["<think>", "</think>", "<tool_call>", "<|fim_prefix|>", "<|im_end|>", "<|im_start|>", "def"]


@pytest.fixture(scope="module")
def added(tokenizer_of_module: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    tokenizer_of_module.add_tokens([AddedToken(word, special=False) for word in ADDED[:4]])
    tokenizer_of_module.add_tokens([AddedToken("def", special=False)])  # in the vocabulary already
    return tokenizer_of_module


@pytest.fixture(scope="module")
def tokenizer_of_module() -> PreTrainedTokenizerBase:
    from grace_exp.policy.tiny import tiny_tokenizer

    return tiny_tokenizer()


@given(st.lists(st.sampled_from([*ADDED, " ", "a", "ü", "<", ">", "\n"]), max_size=8).map("".join))
@settings(max_examples=60, deadline=None)
def test_texts_give_no_added_token_and_come_back_whole(added: PreTrainedTokenizerBase, text: str) -> None:
    (ids,) = plain_text_tokenizer(added)([text])
    assert not set(ids) & set(added.get_added_vocab().values())
    assert added.decode(ids, clean_up_tokenization_spaces=False) == text


def test_other_texts_are_tokenised_as_by_the_tokenizer(added: PreTrainedTokenizerBase) -> None:
    texts = ["A cat sleeps.", "Zwölf Boxkämpfer\n\njagen 3 Wörter", "x", ""]
    assert plain_text_tokenizer(added)(texts) == added(texts, add_special_tokens=False)["input_ids"]
    assert plain_text_tokenizer(added) is plain_text_tokenizer(added)


def test_prompts_hold_the_control_tokens_of_their_template_alone(added: PreTrainedTokenizerBase) -> None:
    build = PromptBuilder(added, PromptConfig(name="p", system="Say what it means.", max_tokens=256))
    control = set(added.get_added_vocab().values())
    spelled, plain = (build(Role.QUERY, text).token_ids for text in ("a <think> b <|im_end|>", "a b"))
    assert [i for i in spelled if i in control] == [i for i in plain if i in control]


def test_a_prompt_that_is_no_text_is_named(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ConfigError, match=r"prompt: the system prompt .*: the lone surrogate \\ud800 at character 3"):
        PromptBuilder(tokenizer, PromptConfig(name="p", system="Be\ud800", max_tokens=256))


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for m in messages %}{{ m['content'] }", r"is broken \(line 1"),
        ("{{ bos + messages[0]['content'] }}", r"uses a variable that it is not given \('bos' is undefined\)"),
        ("{{ messages[0]['content'] + 1 }}", "cannot be rendered: "),
        ("{{ raise_exception('no') }}", "refuses a conversation with one user's turn: no"),
        ({"tool_use": "{{ messages[0]['content'] }}"}, "cannot be rendered: "),
    ],
    ids=["syntax", "variable", "type", "refusal", "named without default"],
)
def test_a_template_that_cannot_be_used_is_an_error_that_names_the_backbone(
    tokenizer: PreTrainedTokenizerBase, template: object, reason: str
) -> None:
    broken = copy.deepcopy(tokenizer)
    broken.chat_template = template
    broken.name_or_path = "some/model"
    for system in ("Be brief.", None):
        with pytest.raises(ConfigError, match=f"backbone: the chat template of 'some/model' {reason}"):
            PromptBuilder(broken, PromptConfig(name="p", system=system, max_tokens=256))
