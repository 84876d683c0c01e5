"""Rewards a rationale that helps its own text, and not any text."""

import torch
from torch import Tensor

from grace_exp.config.reward import TermConfig
from grace_exp.reward.inputs import RewardInputs


def faithfulness_term(inputs: RewardInputs, config: TermConfig) -> Tensor:
    """How much nearer to its anchor a text is with its own rationale than with another text's or with none (ours).

    Let c_i(r) = sim(embedding of text i with rationale r, q_i), the mean over anchor samples. Comparing the same text
    with its own, another's and no rationale gives c_i(r_i^k) - c_i(r_j^k) / 2 - c_i(none) / 2. As a reward this would
    be `positive` with noise, because neither subtracted part depends on r_i^k. So the swapped part is charged to the
    rationale, not to the text that it is swapped into:

        faithfulness_i^k = c_i(r_i^k) - c_j(r_i^k) / 2 - c_i(none) / 2        with j the text that gets i's rationales

    The mean over the batch is that of the comparison, and each value depends on its own rationale. A rationale that
    says nothing about its text does not harm the other text, and gains little. The part without rationale is the same
    for a group and changes no advantage; with it the mean is 0 if rationales have no effect. With one group there is no
    other text, and the part without rationale counts fully.

    Args:
        inputs: `swapped_GKH`, `swapped_from_G` and `bare_GH` are read too.
        config: Not read.

    Returns:
        `[groups, K]` in [-2, 2].

    Raises:
        ValueError: `bare_GH` is missing, or `swapped_GKH` with more than one group.
    """
    own_GK = inputs.rollouts_to_own_anchors_GKA.mean(dim=-1)
    if inputs.unit_bare_GH is None:
        raise ValueError("the faithfulness term needs bare_GH")
    anchor_GH = inputs.unit_anchors_GAH.mean(dim=1)  # the mean of cosines is the product with the mean
    bare_G1 = torch.einsum("gh,gh->g", inputs.unit_bare_GH, anchor_GH)[:, None]
    if inputs.unit_swapped_GKH is None or inputs.swapped_from_G is None:
        if own_GK.shape[0] > 1:
            raise ValueError("the faithfulness term needs swapped_GKH and swapped_from_G")
        return own_GK - bare_G1
    borrowed_GK = torch.einsum("gkh,gh->gk", inputs.unit_swapped_GKH, anchor_GH)
    # The inverse permutation gives in row i the text that gets i's rationales.
    lent_GK = borrowed_GK[inputs.swapped_from_G.argsort()]
    return own_GK - (lent_GK + bare_G1) / 2
