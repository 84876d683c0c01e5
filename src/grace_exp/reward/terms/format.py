"""A well-formed rationale: reasoning within <think></think>, then the understanding."""

from dataclasses import dataclass

import torch
from torch import Tensor

from grace_exp.config.reward import TermConfig
from grace_exp.reward.inputs import RewardInputs

OPEN, CLOSE = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class ParsedRationale:
    """The parts of a rationale.

    Attributes:
        reasoning: What stands in the <think> block, stripped.
        understanding: What follows it, stripped.
        score: Share of the four marks of form that it has: 0, 0.25, 0.5, 0.75 or 1.
    """

    reasoning: str
    understanding: str
    score: float


def parse_rationale(text: str) -> ParsedRationale:
    """Split a rationale as the paper's prompt asks for it, and score its form.

    The marks of form: it begins with its only <think>; its only </think> is not before that; there is reasoning; there
    is an understanding. Where the block is not whole the parser falls back: without </think> all after <think> is
    reasoning (it ran out of tokens); without <think> all before </think> is reasoning (chat templates may open the
    block); without either all is understanding, which is the one mark it has.

    Args:
        text: As decoded, without special tokens.

    Returns:
        Parts and score. A mark counts for the parts as the parser found them.
    """
    before, opened, block = text.partition(OPEN)
    if not opened:
        before, block = "", text
    inside, closed, rest = block.partition(CLOSE)
    reasoning, understanding = (inside, rest) if opened or closed else ("", text)
    reasoning, understanding = reasoning.strip(), understanding.strip()
    opens = opened != "" and before.strip() == "" and OPEN not in block
    closes = closed != "" and CLOSE not in before + rest
    marks = (opens, closes, reasoning != "", understanding != "")
    return ParsedRationale(reasoning, understanding, sum(marks) / len(marks))


def format_term(inputs: RewardInputs, config: TermConfig) -> Tensor:
    """The share of marks of form that a rationale has: `parse_rationale(text).score`.

    Args:
        inputs: `well_formed_GK` is read, no embedding.
        config: Nothing of it is read.

    Returns:
        `[groups, K]` in [0, 1].

    Raises:
        ValueError: `well_formed_GK` is missing.
    """
    if inputs.well_formed_GK is None:
        raise ValueError("the format term needs well_formed_GK")
    return inputs.well_formed_GK.to(torch.float64)
