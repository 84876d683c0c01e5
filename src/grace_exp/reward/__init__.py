"""Rewards from similarities between embeddings: pure functions that know no model."""

from grace_exp.reward.composer import Reward, compose_reward
from grace_exp.reward.diagnostics import embedding_metrics
from grace_exp.reward.inputs import EmbeddingError, RewardInputs
from grace_exp.reward.terms import TERMS

__all__ = ["TERMS", "EmbeddingError", "Reward", "RewardInputs", "compose_reward", "embedding_metrics"]
