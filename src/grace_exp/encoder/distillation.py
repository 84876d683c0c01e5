"""A student that embeds without rationales, trained on the embeddings of a teacher that writes them.

The student is a model of sentence-transformers, trained by its `SentenceTransformerTrainer` with the library's
`EmbedDistillLoss` (cosine) plus the divergence of in-batch similarities.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import EmbedDistillLoss
from torch import Tensor

from grace_exp.config.student import DistillConfig
from grace_exp.data.prompts import PromptBuilder
from grace_exp.encoder.encoder import GraceEncoder
from grace_exp.encoder.pretrained_folder import write_settings
from grace_exp.encoder.progress_bar import progress_bar
from grace_exp.encoder.stock_modules import fits_stock_modules, save_stock
from grace_exp.errors import ConfigError, MissingResourceError

if TYPE_CHECKING:
    from sentence_transformers.sentence_transformer.modules import Dense

_ADAPTER_RATE, _WHOLE_RATE = 5e-4, 5e-5
_WARMUP = 0.1  # as a share of the updates
_MAP_TEXTS = 10_000  # texts to which the linear map is fitted before training; more change it little


class SimilarityDistillLoss(EmbedDistillLoss):
    """Cosine distance to the teacher's embedding, plus the divergence of in-batch similarities."""

    def __init__(self, model: SentenceTransformer, *, temperature: float, similarity_weight: float) -> None:
        """Make the loss for a student whose embeddings have the teacher's width.

        Args:
            model: The student.
            temperature: As in `similarity_divergence`.
            similarity_weight: Weight of the divergence.
        """
        super().__init__(model, distance_metric="cosine")
        self.temperature = temperature
        self.similarity_weight = similarity_weight

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], teacher_embeddings: list[Tensor]) -> Tensor:
        """Return the sum of both, a scalar; one student and one teacher tensor [batch, width] per column of texts."""
        cosine = super().compute_loss_from_embeddings(embeddings, teacher_embeddings)
        divergences = [
            similarity_divergence(student, target, self.temperature)
            for student, target in zip(embeddings, teacher_embeddings, strict=True)
        ]
        return cosine + self.similarity_weight * torch.stack(divergences).mean()

    def get_config_dict(self) -> dict[str, Any]:
        """Return the settings for the library's records."""
        return {"temperature": self.temperature, "similarity_weight": self.similarity_weight}


def similarity_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return KL(teacher || student) of the softmax over each text's cosines with the others, the mean over texts.

    Args:
        student: [batch, width], batch of 3 or more.
        teacher: [batch, teacher width].
        temperature: Divides the cosines.
    """
    student_rows, target = (_neighbours(vectors, temperature) for vectors in (student, teacher.to(student)))
    return torch.nn.functional.kl_div(student_rows, target, reduction="batchmean", log_target=True)


def _neighbours(vectors: Tensor, temperature: float) -> Tensor:
    """Return log-probabilities [batch, batch - 1]; a text is not its own neighbour."""
    unit = torch.nn.functional.normalize(vectors.float(), dim=-1)
    others = ~torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    return torch.log_softmax((unit @ unit.T)[others].view(len(unit), -1) / temperature, dim=-1)


def check_own_student(teacher: GraceEncoder) -> None:
    """Check that stock modules can compute the teacher's prompt-only embedding.

    Raises:
        ConfigError: They cannot.
    """
    layers = teacher.policy.causal_lm.config.get_text_config().num_hidden_layers
    if not fits_stock_modules(_builder(teacher), teacher.policy.pooling, layers):
        raise ConfigError(
            f"job.distill.student=null: {teacher.name} has instructions by role, max pooling, or pools an inner layer, "
            "which sentence-transformers' own modules cannot do: choose another student, as job.distill.student=minilm"
        )


def own_student(teacher: GraceEncoder, rank: int, seed: int) -> SentenceTransformer:
    """Return a student with the teacher's weights in float32 and a new adapter; only the adapter is trained.

    Args:
        teacher: The teacher, after `check_own_student`.
        rank: Rank of the adapter.
        seed: Seed of its initial weights.
    """
    from peft import LoraConfig

    with tempfile.TemporaryDirectory() as folder:
        _save_stock(teacher, Path(folder))
        student = SentenceTransformer(folder, device=str(teacher.device), model_kwargs={"dtype": torch.float32})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        student.add_adapter(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))
    return student


def load_student(name: str, device: torch.device) -> SentenceTransformer:
    """Return a sentence-transformers model as a student, in float32.

    Args:
        name: Folder or hub name.
        device: Device of the student.

    Raises:
        MissingResourceError: It cannot be loaded.
    """
    try:
        return SentenceTransformer(name, device=str(device), model_kwargs={"dtype": torch.float32})
    except (OSError, ValueError) as error:
        raise MissingResourceError(
            f"job.distill.student={name} could not be loaded: {str(error).partition(chr(10))[0].rstrip('.')}. Give the "
            "folder or hub name of a sentence-transformers model"
        ) from error


def match_width(student: SentenceTransformer, texts: Sequence[str], targets: NDArray[np.float32]) -> None:
    """If the widths differ, append a linear map to the teacher's width to the student.

    Args:
        student: The student, which gets one more module.
        texts: Texts of the corpus.
        targets: The teacher's embeddings of them, [texts, width].
    """
    if student.get_embedding_dimension() != targets.shape[1]:
        few = list(texts[:_MAP_TEXTS])
        vectors = np.asarray(student.encode(few, show_progress_bar=False))
        student.append(linear_map(vectors, targets[: len(few)]).to(student.device))


def linear_map(vectors: NDArray[np.float32], targets: NDArray[np.float32]) -> "Dense":
    """Return the affine map from vectors [texts, width] to the directions of targets [texts, other width], as a module.

    It is a ridge regression with the penalty that predicts left-out texts best.
    """
    from sentence_transformers.sentence_transformer.modules import Dense
    from sklearn.linear_model import RidgeCV

    unit = targets / np.linalg.norm(targets, axis=1, keepdims=True)
    fit = RidgeCV(alphas=np.logspace(-4, 3, 8)).fit(vectors, unit)
    return Dense(
        vectors.shape[1],
        targets.shape[1],
        activation_function=None,
        init_weight=torch.tensor(fit.coef_, dtype=torch.float32),
        init_bias=torch.tensor(fit.intercept_, dtype=torch.float32),
    )


def train_student(
    student: SentenceTransformer,
    texts: Sequence[str],
    targets: NDArray[np.float32],
    settings: DistillConfig,
    *,
    seed: int,
    bf16: bool,
    progress: bool,
) -> list[float]:
    """Train the student in place.

    Args:
        student: The student; its embeddings have the width of the targets.
        texts: The texts, at least as many as a batch has.
        targets: The teacher's embeddings, [texts, width].
        settings: Batch size, learning rate, loss.
        seed: Seed of the order of texts.
        bf16: Whether the forward runs under autocast.
        progress: Whether to show a bar.

    Returns:
        The mean loss of each epoch.
    """
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from transformers import PrinterCallback, TrainerCallback

    loss = SimilarityDistillLoss(
        student, temperature=settings.temperature, similarity_weight=settings.similarity_weight
    )
    usual = _ADAPTER_RATE if settings.student is None else _WHOLE_RATE
    read = settings.epochs * (len(texts) // settings.batch_size) * settings.batch_size
    student.model_card_data.widget = [{}]  # keeps the trainer from collecting examples for a card that is not written
    with tempfile.TemporaryDirectory() as folder, progress_bar(read, visible=progress) as advance:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=folder,
            num_train_epochs=settings.epochs,
            per_device_train_batch_size=settings.batch_size,
            learning_rate=settings.learning_rate or usual,
            warmup_steps=_WARMUP,
            dataloader_drop_last=True,  # a small last batch has few neighbours
            prompts=student.prompts.get(student.default_prompt_name or "") or None,  # as in `encode`
            seed=seed,
            bf16=bf16,
            use_cpu=student.device.type == "cpu",
            logging_strategy="epoch",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        arguments._n_gpu = min(1, arguments.n_gpu)  # other GPUs of the machine are not used

        class Advance(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                advance(settings.batch_size)

        trainer = SentenceTransformerTrainer(
            model=student,
            args=arguments,
            train_dataset=Dataset.from_dict({"text": list(texts), "label": list(targets)}),
            loss=loss,
            callbacks=[Advance()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return [float(row["loss"]) for row in trainer.state.log_history if "loss" in row]


def save_student(student: SentenceTransformer, folder: Path, *, backbone: GraceEncoder | None) -> None:
    """Write the student's folder of stock modules.

    Args:
        student: The trained student.
        folder: The folder.
        backbone: The teacher, if the student is its backbone with an adapter. It takes over the student's weights, and
            `GraceEncoder.from_pretrained` also loads the folder. None: another student.
    """
    if backbone is None:
        student.save(str(folder), create_model_card=False)
        return
    _fold_adapter(student, backbone)
    _save_stock(backbone, folder)
    write_settings(folder, backbone, mode="prompt_only")


def _fold_adapter(student: SentenceTransformer, teacher: GraceEncoder) -> None:
    """Merge the adapter into the teacher; it is on linear layers only, and all other weights are the teacher's."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    learned: Any = student.transformers_model
    target: Any = teacher.backbone.model.base_model
    for name, layer in learned.named_modules():
        if isinstance(layer, BaseTunerLayer):
            layer.merge(safe_merge=True)
            with torch.no_grad():
                target.get_submodule(name).weight.copy_(layer.get_base_layer().weight)


def _save_stock(teacher: GraceEncoder, folder: Path) -> None:
    model, pooling = teacher.backbone.model, teacher.policy.pooling
    save_stock(folder, model, teacher.tokenizer, _builder(teacher), pooling, teacher.prompt.max_tokens)


def _builder(teacher: GraceEncoder) -> PromptBuilder:
    """Return a builder of the prompts of all roles, as in training."""
    return PromptBuilder(teacher.tokenizer, teacher.prompt, teacher.template_kwargs, allow_empty=True)
