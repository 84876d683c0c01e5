"""Rewards computed from similarities between embeddings: pure functions without a model."""

from grace_exp.reward.composer import Reward, compose_reward, required_inputs
from grace_exp.reward.diagnostics import embedding_metrics, in_batch_misses
from grace_exp.reward.gradient import RewardGradients, reward_gradients
from grace_exp.reward.inert import InertTerms
from grace_exp.reward.inputs import EmbeddingError, RewardInputs
from grace_exp.reward.overlap import augmentation_overlap
from grace_exp.reward.team_credit import TeamCredit, team_credit
from grace_exp.reward.terms import TERMS
from grace_exp.reward.terms.format import ParsedRationale, parse_rationale

__all__ = [
    "TERMS",
    "EmbeddingError",
    "InertTerms",
    "ParsedRationale",
    "Reward",
    "RewardGradients",
    "RewardInputs",
    "TeamCredit",
    "augmentation_overlap",
    "compose_reward",
    "embedding_metrics",
    "in_batch_misses",
    "parse_rationale",
    "required_inputs",
    "reward_gradients",
    "team_credit",
]
