"""SimCSE (arXiv 2104.08821): the positive of a text is the same text under another dropout mask."""

from typing import Any

from grace_exp.config.root import GraceConfig
from grace_exp.data.prompts import PromptBuilder
from grace_exp.errors import ConfigError
from grace_exp.policy.packing import TextSequence
from grace_exp.policy.policy import Policy
from grace_exp.rollout.protocol import RolloutEngine
from grace_exp.training.baselines.contrastive import ContrastiveModule


class SimCseModule(ContrastiveModule):
    """Contrastive training on single texts, each embedded twice."""

    def __init__(self, config: GraceConfig, *, policy: Policy, engine: RolloutEngine, prompts: PromptBuilder) -> None:
        """Make a `ContrastiveModule` with dropout on the backbone.

        Raises:
            ConfigError: The backbone's attention has no dropout.
        """
        super().__init__(config, policy=policy, engine=engine, prompts=prompts)
        assert config.method.dropout is not None  # checked by MethodConfig
        set_attention_dropout(policy, config.method.dropout)

    def views(self, queries: list[TextSequence], others: list[TextSequence]) -> list[list[TextSequence]]:
        """Return queries and positives as two views, because a forward computes equal texts of one view only once."""
        return [queries, others]


def set_attention_dropout(policy: Policy, probability: float) -> None:
    """Drop attention weights with this probability in training mode.

    Instruct LLMs are trained without dropout; the only dropout inside their layers is that of attention, set to 0.
    LLM2Vec (arXiv 2404.05961) makes SimCSE's views with it on similar LLMs. Dropout on adapters has no effect at the
    start: they start at zero.

    Raises:
        ConfigError: The backbone's attention has no dropout.
    """
    modules: list[Any] = [module for module in policy.causal_lm.modules() if hasattr(module, "attention_dropout")]
    if not modules:
        raise ConfigError(
            f"method=simcse needs attention dropout, which {policy.model.config.model_type} models do not have: choose "
            "another backbone"
        )
    for module in modules:
        module.attention_dropout = probability
