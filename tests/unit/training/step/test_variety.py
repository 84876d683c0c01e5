"""The metrics of equal rationales for different texts."""

import torch

from grace_exp.training.step.variety import most_common_share, rationale_key


def keys(*rows: list[str]) -> torch.Tensor:
    return torch.tensor([[rationale_key(list(text.encode())) for text in row] for row in rows])


def test_the_share_counts_instances_not_rationales() -> None:
    assert most_common_share(keys(["a", "a", "a"], ["b", "c", "d"])) == 1 / 2
    assert most_common_share(keys(["a", "b"], ["c", "a"], ["d", "e"], ["f", "g"])) == 2 / 4
    assert most_common_share(keys(["", ""], ["", ""])) == 1


def test_token_boundaries_count() -> None:
    assert rationale_key([1, 11]) != rationale_key([11, 1]) != rationale_key([111])
