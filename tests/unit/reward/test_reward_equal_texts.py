"""Equal texts in one batch are not negatives of each other."""

from dataclasses import replace

import pytest
import torch

from grace_exp.config.reward import HardNegativeConfig, InfoNceConfig
from grace_exp.data.batch import Instance, instance_keys
from grace_exp.reward.inputs import RewardInputs
from grace_exp.reward.terms.hard_negative import hard_negative_term
from grace_exp.reward.terms.infonce import infonce_term

# Group 3 repeats the query of group 0; the negative of group 1 is its own positive.
KEYS = torch.tensor([[10, 20, 30], [11, 21, 21], [12, 22, 32], [10, 23, 33]])


def without(inputs: RewardInputs, group: int) -> RewardInputs:
    """The batch without one of its groups."""
    rest = [other for other in range(4) if other != group]
    return RewardInputs(
        rollouts_GKH=inputs.rollouts_GKH[rest],
        anchors_GAH=inputs.anchors_GAH[rest],
        negatives_GMH=inputs.negatives_GMH[rest] if inputs.negatives_GMH is not None else None,
        truncated_GK=inputs.truncated_GK[rest],
        lengths_GK=inputs.lengths_GK[rest],
        trained=inputs.trained,
    )


DIRECTIONS = ["rollout_to_anchors", "anchor_to_rollouts", "both"]


@pytest.mark.parametrize("trained", ["positive", "query"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_infonce_is_that_of_the_batch_without_the_equal_text(make_inputs, direction, trained) -> None:
    inputs = replace(make_inputs(trained=trained), text_keys_GX=KEYS)
    config = InfoNceConfig(direction=direction)
    found = infonce_term(inputs, config)
    torch.testing.assert_close(found[0], infonce_term(without(inputs, 3), config)[0])
    torch.testing.assert_close(found[3], infonce_term(without(inputs, 0), config)[2])
    torch.testing.assert_close(found[2], infonce_term(replace(inputs, text_keys_GX=None), config)[2])
    no_negatives = infonce_term(
        replace(make_inputs(trained=trained), negatives_GMH=None, text_keys_GX=KEYS[:, :2]), config
    )
    torch.testing.assert_close(found[1], no_negatives[1])


def test_of_all_negatives_those_with_a_text_of_the_pair_are_left_out(make_inputs) -> None:
    config = InfoNceConfig(negatives="all")
    plain = make_inputs()
    keys = torch.arange(12).view(4, 3)
    keys[2, 2] = keys[0, 1]  # the positive of group 0 is the negative of group 2
    found = infonce_term(replace(plain, text_keys_GX=keys), config)
    mask = torch.tensor([[True], [True], [False], [True]])
    torch.testing.assert_close(found[0], infonce_term(replace(plain, negative_mask_GM=mask), config)[0])
    torch.testing.assert_close(found[1:], infonce_term(plain, config)[1:])


@pytest.mark.parametrize("anchor", ["query", "rollout"])
def test_hard_negative_leaves_them_out_where_it_is_asked_to(make_inputs, anchor: str) -> None:
    inputs = replace(make_inputs(), text_keys_GX=KEYS)
    masked = hard_negative_term(inputs, HardNegativeConfig(anchor=anchor))
    torch.testing.assert_close(masked[0], hard_negative_term(without(inputs, 3), HardNegativeConfig(anchor=anchor))[0])
    paper = HardNegativeConfig(anchor=anchor, equal_texts="keep")
    torch.testing.assert_close(
        hard_negative_term(inputs, paper), hard_negative_term(replace(inputs, text_keys_GX=None), paper)
    )
    everywhere = replace(inputs, text_keys_GX=torch.zeros(4, 3, dtype=torch.long))
    assert torch.equal(hard_negative_term(everywhere, HardNegativeConfig(anchor=anchor)), torch.zeros(4, 3).double())


def test_equal_texts_have_equal_keys_and_no_text_has_that_of_a_missing_one() -> None:
    one = instance_keys(Instance(index=0, query="a", positive="b", negatives=("c", "d", "e"), source="s"), 2)
    other = instance_keys(Instance(index=1, query=" b ", positive="x", negatives=(), source="s"), 2)
    assert len(one) == len(other) == 4 and len({*one, *other}) == 6
    assert one[1] == other[0] and other[2] == other[3] and other[2] not in one
