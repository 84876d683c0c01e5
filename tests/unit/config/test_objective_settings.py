"""Presets of `objective` and the settings that do not go together."""

from pathlib import Path

import pytest

from grace_exp.config.compose import compose_config
from grace_exp.config.root import GraceConfig
from grace_exp.errors import ConfigError


def composed(*overrides: str) -> GraceConfig:
    return compose_config(["+experiment=demo_tiny", *overrides], Path("run"))


PATHWISE, ALONE = "objective.pathwise.weight=1.0", "objective.policy_gradient_weight=0"
OVERLAP = ["rollout=vllm_server", "rollout.overlap=one_step"]
AHEAD = "rollout.overlap=one_step with"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["objective.length_normalizer=8"], "objective: length_normalizer=8 with aggregation='token_mean'"),
        (["objective.replay={capacity: 4}"], "objective: replay is set with algorithm='grpo'"),
        (["objective.kl.anchor=behaviour"], "objective: kl.anchor='behaviour' with algorithm='grpo'"),
        (
            ["objective=copg", "objective.kl.placement=loss"],
            "objective: kl.estimator='k1', kl.placement='loss' with algorithm='copg'",
        ),
        (["objective=copg", "objective.importance.mode=token"], "objective: importance.mode='token' with algorithm="),
        (["rollout.group_size=1", "objective=rloo"], "rollout.group_size=1: an advantage compares"),
        (["objective=exact"], "objective=exact with objective.advantage_scale='batch_std'"),
        ([PATHWISE, "reward.encoder.kind=ema"], "objective.pathwise.weight=1.0 with reward.encoder.kind='ema'"),
        ([PATHWISE, "reward.encoder.kind=frozen"], "objective.pathwise.weight=1.0 with reward.encoder.kind='frozen'"),
        (
            [PATHWISE, "backbone.gradient_checkpointing=selective"],
            "objective.pathwise.parts_every_n_steps=10 with backbone.gradient_checkpointing='selective'",
        ),
        ([PATHWISE, "method=rejection_sft"], "objective.pathwise.weight=1.0 with method=rejection_sft"),
        (
            [PATHWISE, "reward=format_length", "reward.terms.infonce.weight=0"],
            "objective.pathwise.weight=1.0, but no term with a weight has a gradient in an embedding (format, length)",
        ),
        (
            [PATHWISE, "reward=log_rank"],
            "objective.pathwise.weight=1.0, but no term with a weight has a gradient in an embedding (log_rank)",
        ),
        (
            ["objective.team_credit=1", "rollout.group_size=1", "objective=remax"],
            "objective.team_credit=1.0 with rollout.",
        ),
        (
            ["objective.team_credit=1", "job.batch_size=1", "objective.mini_batch_size=1"],
            "objective.team_credit=1.0 with job.batch_size=1",
        ),
        ([PATHWISE, ALONE, "objective.team_credit=1"], "objective: team_credit=1.0 with policy_gradient_weight=0"),
        ([ALONE], "objective: policy_gradient_weight=0 with pathwise.weight=0 trains nothing"),
        ([PATHWISE, ALONE, "objective.entropy_coefficient=0.1"], "objective: policy_gradient_weight=0 leaves out"),
        ([PATHWISE, ALONE, "objective.kl.coefficient=0.1"], "objective: policy_gradient_weight=0 leaves out"),
        ([PATHWISE, ALONE, "objective=copg"], "objective: policy_gradient_weight=0 with replay"),
        ([*OVERLAP, "rollout=transformers"], f"{AHEAD} rollout=transformers: it decodes with the policy's own weights"),
        ([*OVERLAP, "rollout=vllm"], f"{AHEAD} rollout=vllm: the engine shares the policy's device"),
        ([*OVERLAP, "method=rejection_sft"], f"{AHEAD} method=rejection_sft: only method=grace weighs"),
        ([*OVERLAP, "method=contrastive"], f"{AHEAD} method=contrastive: only method=grace weighs"),
        ([*OVERLAP, "objective=copg"], f"{AHEAD} objective.algorithm='copg', which takes no importance weights"),
        ([*OVERLAP, "objective.importance.mode=none"], f"{AHEAD} objective.importance.mode='none'"),
        ([*OVERLAP, PATHWISE], f"{AHEAD} objective.pathwise.weight=1.0: the pathwise gradient is a mean"),
        ([*OVERLAP, "objective=dapo"], f"{AHEAD} objective.dynamic_sampling: instances that are exchanged"),
    ],
)
def test_settings_that_contradict_each_other_are_named(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        composed(*overrides)
    assert any(line.strip().startswith(words) for line in str(raised.value).splitlines()), str(raised.value)


@pytest.mark.parametrize("preset", ["remax", "reinforce_pp"])
def test_a_baseline_outside_the_group_needs_no_group(preset: str) -> None:
    assert composed(f"objective={preset}", "rollout.group_size=1").rollout.group_size == 1


def test_without_a_policy_gradient_no_group_is_needed() -> None:
    assert composed(PATHWISE, ALONE, "rollout.group_size=1").rollout.group_size == 1


def test_the_exact_preset_weighs_both_parts_alike() -> None:
    objective = composed("objective=exact", "objective.advantage_scale=none").objective
    assert (objective.algorithm, objective.aggregation, objective.length_normalizer) == ("rloo", "constant", 1)
    assert objective.policy_gradient_weight == objective.pathwise.weight == 1


def test_presets_have_the_figures_of_their_sources() -> None:
    """arXiv 2503.14476 (DAPO), 2507.18071 (GSPO), 2503.20783 (Dr. GRPO)."""
    dapo, gspo, dr_grpo = (composed(f"objective={name}").objective for name in ("dapo", "gspo", "dr_grpo"))
    assert (dapo.clip_low, dapo.clip_high, dapo.aggregation) == (0.2, 0.28, "token_mean")
    assert dapo.overlong is not None and dapo.overlong.share == 4096 / 20480
    assert dapo.dynamic_sampling is not None
    assert (gspo.clip_low, gspo.clip_high, gspo.aggregation) == (3e-4, 4e-4, "sequence_mean")
    assert (dr_grpo.aggregation, dr_grpo.length_normalizer) == ("constant", None)


def test_what_is_written_ahead_is_corrected_for_unless_said_otherwise() -> None:
    assert composed(*OVERLAP).objective.importance.mode == "token"
    assert composed(*OVERLAP, "objective.importance.mode=sequence").objective.importance.mode == "sequence"
    assert composed("rollout=vllm_server").objective.importance.mode == "none"


def test_jobs_that_do_not_train_take_no_notice_of_the_overlap(tmp_path: Path) -> None:
    data = ["job=embed", f"job.input={tmp_path / 'texts.txt'}", "job.output=vectors.npy"]
    assert composed(*OVERLAP, "rollout=vllm", *data).rollout.overlap == "one_step"
