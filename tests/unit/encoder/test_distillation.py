"""The loss and the linear map of distillation."""

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss
from sentence_transformers.sentence_transformer.modules import BoW
from sentence_transformers.util import pairwise_cos_sim

from grace_exp.encoder.distillation import SimilarityDistillLoss, linear_map, similarity_divergence


def vectors(rows: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_the_divergence_is_that_of_sentence_transformers_with_all_others_as_candidates(temperature: float) -> None:
    student, teacher = vectors(5, 8, 0), vectors(5, 12, 1)
    shifted = [student.roll(-step, 0) for step in range(1, 5)]
    scores = torch.stack([pairwise_cos_sim(teacher, teacher.roll(-step, 0)) for step in range(1, 5)], dim=1)
    model = SentenceTransformer(modules=[BoW(["a"])], device="cpu")
    peer = DistillKLDivLoss(model, similarity_fct=pairwise_cos_sim, temperature=temperature)
    expected = peer.compute_loss_from_embeddings([student, *shifted], scores) / temperature**2
    torch.testing.assert_close(similarity_divergence(student, teacher, temperature), expected)


def test_equal_similarities_have_no_divergence_and_others_a_positive_one() -> None:
    teacher = vectors(6, 4, 0)
    rotation, _ = torch.linalg.qr(vectors(4, 4, 1))
    assert similarity_divergence(3 * teacher @ rotation, teacher, 0.05).item() == pytest.approx(0, abs=1e-5)
    assert similarity_divergence(teacher.flip(0), teacher, 0.05) > 0.1


def test_the_loss_is_cosine_distance_plus_weighted_divergence() -> None:
    model = SentenceTransformer(modules=[BoW(["a"])], device="cpu")
    student, teacher = vectors(4, 6, 0).requires_grad_(), vectors(4, 6, 1)
    loss = SimilarityDistillLoss(model, temperature=0.5, similarity_weight=2.0)
    distance = (1 - torch.nn.functional.cosine_similarity(student, teacher)).mean()
    found = loss.compute_loss_from_embeddings([student], [teacher])
    torch.testing.assert_close(found, distance + 2 * similarity_divergence(student, teacher, 0.5))
    found.backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None and student.grad.abs().sum() > 0


def test_the_linear_map_finds_an_affine_map() -> None:
    generator = np.random.default_rng(0)
    weight, bias = generator.normal(size=(3, 5)), generator.normal(size=5)

    def mapped(student: np.ndarray) -> np.ndarray:
        # A last dimension that brings every target to the same length keeps the map to directions affine on the others.
        rows = student @ weight + bias
        longest = 100.0
        return np.concatenate([rows, np.sqrt(longest**2 - (rows**2).sum(1, keepdims=True))], 1).astype(np.float32)

    student = generator.normal(size=(50, 3)).astype(np.float32)
    module = linear_map(student[:40], mapped(student[:40]))
    assert (module.in_features, module.out_features) == (3, 6)
    found = module({"sentence_embedding": torch.tensor(student[40:])})["sentence_embedding"].detach()
    expected = torch.tensor(mapped(student[40:]))
    assert torch.nn.functional.cosine_similarity(found, expected).min() > 0.9999
    torch.testing.assert_close(100 * found[:, :5], expected[:, :5], atol=0.05, rtol=0.01)
