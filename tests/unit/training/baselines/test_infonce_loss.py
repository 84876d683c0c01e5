"""InfoNCE equals sentence-transformers' on the same tensors, and leaves out candidates that are no negatives."""

import math

import pytest
import torch
from torch import Tensor

from grace_exp.training.baselines import infonce_loss
from grace_exp.training.baselines.infonce_loss import Contrast

HIDDEN = 12


def vectors(count: int, seed: int) -> Tensor:
    # Of very different lengths: only directions count.
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, HIDDEN, generator=generator) * torch.logspace(0, 2, count)[:, None]


class Given(torch.nn.Module):
    """Stands for a sentence-transformers model: the inputs are the embeddings, times one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features["input_ids"] * self.weight}

    def __getitem__(self, index: int) -> torch.nn.Module:
        return torch.nn.Identity()


def reference(kind: str, columns: list[Tensor], temperature: float) -> tuple[Tensor, list[Tensor]]:
    """sentence-transformers' loss and its gradients with respect to the columns."""
    from sentence_transformers.sentence_transformer import losses

    leaves = [column.clone().requires_grad_() for column in columns]
    labels = torch.zeros(len(columns[0]))
    if kind == "plain":
        loss = losses.MultipleNegativesRankingLoss(Given(), scale=1 / temperature)
        value = loss.compute_loss_from_embeddings(leaves, labels)
        value.backward()
    else:
        cached = losses.CachedMultipleNegativesRankingLoss(Given(), scale=1 / temperature, mini_batch_size=3)
        value = cached.calculate_loss([[leaf] for leaf in leaves], labels, with_backward=True)
    return value.detach(), [leaf.grad for leaf in leaves if leaf.grad is not None]


@pytest.mark.parametrize("kind", ["plain", "cached"])
@pytest.mark.parametrize("negatives", [0, 1, 2])
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_loss_and_gradients_are_those_of_sentence_transformers(
    kind: str, negatives: int, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = [vectors(8, seed) for seed in range(2 + negatives)]
    expected, wanted = reference(kind, columns, temperature)
    extra = torch.cat(columns[2:]) if negatives else torch.zeros(0, HIDDEN)
    for rows in (1024, 3):  # in parts, too
        monkeypatch.setattr(infonce_loss, "ROWS_AT_ONCE", rows)
        loss, gradients = Contrast(columns[0], columns[1], extra).gradients(temperature)
        torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
        found = [gradients.queries, gradients.positives, *gradients.negatives.split(8)]
        for mine, its in zip(found, wanted, strict=False):
            torch.testing.assert_close(mine, its, atol=1e-5, rtol=1e-5)
        assert len(wanted) == 2 + negatives


def test_simcse_is_sentence_transformers_loss_of_a_text_with_itself() -> None:
    first = vectors(6, 0)
    second = first + 0.3 * vectors(6, 1)  # the same texts under another dropout mask
    expected, _ = reference("plain", [first, second], 0.05)
    loss, _ = Contrast(first, second, torch.zeros(0, HIDDEN)).gradients(0.05)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)


def test_the_loss_of_orthogonal_texts_is_known() -> None:
    units = torch.eye(4)
    losses = Contrast(units[:2], units[:2], units[2:]).losses(0.5)
    assert losses.tolist() == pytest.approx([math.log(1 + 3 * math.exp(-2))] * 2)  # own: e^2, three others: e^0


def test_a_candidate_with_the_text_of_the_query_or_its_positive_is_no_negative() -> None:
    queries, positives, negatives = vectors(3, 0), vectors(3, 1), vectors(2, 2)
    # The second positive is the first positive's text, the first negative is the third query's.
    keys = (torch.tensor([1, 2, 3]), torch.tensor([4, 4, 5]), torch.tensor([3, 6]))
    losses = Contrast(queries, positives, negatives, *keys).losses(0.1)
    candidates = torch.nn.functional.normalize(torch.cat([positives, negatives]), dim=-1)
    logits = torch.nn.functional.normalize(queries, dim=-1) @ candidates.T / 0.1
    kept = [[0, 2, 3, 4], [1, 2, 3, 4], [0, 1, 2, 4]]
    expected = [(logits[i, kept[i]].logsumexp(0) - logits[i, i]).item() for i in range(3)]
    assert losses.tolist() == pytest.approx(expected, abs=1e-5)


def test_one_pair_alone_has_nothing_to_learn() -> None:
    loss, gradients = Contrast(vectors(1, 0), vectors(1, 1), torch.zeros(0, HIDDEN)).gradients(0.05)
    assert loss.item() == 0 and gradients.queries.abs().max().item() == pytest.approx(0, abs=1e-6)
