"""The terms of the reward. A new term needs a file here, a line below and a field of `TermsConfig`."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from grace_exp.reward.inputs import RewardInputs
from grace_exp.reward.terms.consistency import consistency_term
from grace_exp.reward.terms.faithfulness import faithfulness_term
from grace_exp.reward.terms.format import format_term
from grace_exp.reward.terms.hard_negative import hard_negative_term
from grace_exp.reward.terms.infonce import infonce_term
from grace_exp.reward.terms.length import length_term
from grace_exp.reward.terms.log_rank import log_rank_term
from grace_exp.reward.terms.margin_rank import margin_rank_term
from grace_exp.reward.terms.negative import negative_term
from grace_exp.reward.terms.own_term import custom_term
from grace_exp.reward.terms.positive import positive_term
from grace_exp.reward.terms.softmax_negative import softmax_negative_term

Term = Callable[[RewardInputs, Any], Tensor]
"""A function from inputs and the term's settings to unweighted values `[groups, K]`, where more is better."""

TERMS: dict[str, Term] = {
    "positive": positive_term,
    "negative": negative_term,
    "consistency": consistency_term,
    "hard_negative": hard_negative_term,
    "infonce": infonce_term,
    "margin_rank": margin_rank_term,
    "log_rank": log_rank_term,
    "softmax_negative": softmax_negative_term,
    "format": format_term,
    "length": length_term,
    "faithfulness": faithfulness_term,
    "custom": custom_term,
}
"""The terms by their names in `TermsConfig`, in its order."""
