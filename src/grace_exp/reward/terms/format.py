"""Rewards a well-formed rationale: reasoning within <think></think>, then the understanding."""

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
        reasoning: The text inside the <think> block, stripped.
        understanding: The text after the block, stripped.
        score: Share of the four marks of form that the rationale has: 0, 0.25, 0.5, 0.75 or 1.
    """

    reasoning: str
    understanding: str
    score: float


def parse_rationale(text: str) -> ParsedRationale:
    """Split a rationale into the parts that the paper's prompt asks for, and score its form.

    There are four marks of form: the rationale begins with its only <think>; its only </think> does not come before
    that; there is reasoning; there is an understanding. If the block is incomplete, the parser falls back. Without
    </think> all text after <think> is reasoning (the rationale ran out of tokens). Without <think> all text before
    </think> is reasoning (the chat template may open the block). Without either all text is understanding, the only
    mark it has.

    Args:
        text: The decoded rationale, without special tokens.

    Returns:
        Parts and score. The marks are scored on the parts as the parser found them.
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
    """Share of the marks of form that a rationale has: `parse_rationale(text).score`.

    Args:
        inputs: Only `well_formed_GK` is read.
        config: Not read.

    Returns:
        `[groups, K]` in [0, 1].

    Raises:
        ValueError: `well_formed_GK` is missing.
    """
    if inputs.well_formed_GK is None:
        raise ValueError("the format term needs well_formed_GK")
    return inputs.well_formed_GK.to(torch.float64)
