"""Reward terms, and the data and embeddings that they need."""

from grace_exp.config.groups import Groups
from grace_exp.config.require import Require


def reward_rules(config: Groups, require: Require) -> None:
    """Check that every term has what it compares; a method without a reward has no requirement."""
    if config.method.is_infonce:
        return
    terms, data = config.reward.terms, config.data
    if terms.negative is not None:
        require(
            data.mode != "unsupervised",
            "reward.terms.negative is set, but data.mode='unsupervised' has no negatives: set "
            "reward.terms.negative=null or choose reward=paper_unsupervised",
        )
        require(
            data.mode == "unsupervised" or data.negative_counts() != {0},
            f"reward.terms.negative is set, but data.negatives={data.negatives} (or the sources' own) leaves no "
            "instance a negative: set reward.terms.negative=null",
        )
    if terms.faithfulness is not None:
        require(
            config.backbone.pooling.region != "rationale",
            "reward.terms.faithfulness compares with the text without rationale, which backbone.pooling.region="
            "'rationale' has no embedding for: set 'text_and_rationale', or reward.terms.faithfulness=null",
        )
        require(
            config.job.batch_size >= 2 * config.processes,
            f"reward.terms.faithfulness swaps rationales between the instances of a process, but job.batch_size="
            f"{config.job.batch_size} gives some fewer than 2: raise it, or set reward.terms.faithfulness=null",
        )
