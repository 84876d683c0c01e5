"""Train a student that writes no rationales on a teacher's embeddings, and report what it keeps."""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from sentence_transformers import SentenceTransformer

from grace_exp.config.root import GraceConfig
from grace_exp.data.batch import Role
from grace_exp.data.text_keys import normalized
from grace_exp.encoder.distillation import (
    check_own_student,
    load_student,
    match_width,
    own_student,
    save_student,
    train_student,
)
from grace_exp.encoder.encoder import GraceEncoder
from grace_exp.encoder.modes import Mode, role_of
from grace_exp.errors import DataError
from grace_exp.evaluation.heldout import minilm_folder
from grace_exp.evaluation.heldout_texts import heldout_texts
from grace_exp.evaluation.scores import ItemScores, Vectors
from grace_exp.evaluation.student_report import (
    BEFORE,
    PROMPT_ONLY,
    STUDENT,
    TEACHER,
    Embed,
    Measured,
    SetReport,
    measure,
    student_card,
    student_table,
)
from grace_exp.jobs.embed import checked_rows
from grace_exp.jobs.processes import processes
from grace_exp.jobs.run_encoder import build_encoder
from grace_exp.jobs.terminal import our_console
from grace_exp.tracking.atomic import atomic_folder, write_text_atomic
from grace_exp.tracking.summary import write_json_atomic
from grace_exp.training.callbacks.heldout_evaluation import stored_results
from grace_exp.training.export import FOLDER, export_folder

MINILM = "minilm"
"""The value of `job.distill.student` that names all-MiniLM-L6-v2's package."""


def distill(config: GraceConfig) -> dict[str, float]:
    """Embed `job.input` with `job.model`, train the student on it, and write `export/student` into the run folder.

    Teacher and student are measured on `evaluation.sets`; `export/distillation.json` has all results.

    Returns:
        `distill/texts`, and for each set `distill/<set>/{teacher,student,kept,teacher_ms,student_ms}`; `kept` is
        missing if the teacher's gain is unknown or not positive.

    Raises:
        DataError: The input does not exist, a row of it holds no text, or there are fewer texts than in a batch.
        MissingResourceError: Teacher or student does not exist.
        ConfigError: The student cannot have the teacher's prompt or pooling.
    """
    settings, console = config.job.distill, our_console()
    texts = _texts(config, console)
    folder = export_folder(config, STUDENT)
    with processes(config.hardware) as device:
        taught = _teach(config, device, texts, folder)
        student = SentenceTransformer(str(folder), device=str(device))
        rows = taught.rows | {STUDENT: measure(config.evaluation, _as_student(config, student))}
    untrained = _untrained(config, taught.mode)
    resamples = config.evaluation.bootstrap
    reports = [
        SetReport(name, {row: found[name] for row, found in rows.items()}, untrained.get(name), resamples)
        for name in config.evaluation.sets
    ]
    kind = "The teacher's backbone with an adapter folded in" if settings.student is None else f"`{settings.student}`"
    what = f"{kind}, trained on the teacher's embeddings of {len(texts)} texts, {settings.epochs} epochs."
    write_text_atomic(folder / "README.md", student_card(STUDENT, taught.teacher, what, reports))
    record = {
        "teacher": taught.teacher,
        "mode": taught.mode,
        "device": str(device),
        "seed": config.seed,
        "texts": len(texts),
        "settings": asdict(settings),
        "loss": taught.losses,
        "training_seconds": taught.seconds,
        "sets": {report.name: report.as_dict() for report in reports},
    }
    write_json_atomic(Path(config.run_dir) / FOLDER / "distillation.json", record)
    console.print(student_table(reports))
    if any(report.untrained is None for report in reports):
        console.print(
            f"The gain is not known: {config.job.model} holds no figures from before training under these settings of "
            "evaluation. Name its run folder as job.model, and the evaluation of that run",
            soft_wrap=True,
        )
    for report in reports:
        console.print(report.line(), highlight=False, soft_wrap=True)
    console.print(f"Student: {folder}", highlight=False, soft_wrap=True)
    return {"distill/texts": float(len(texts)), **_figures(reports)}


@dataclass(frozen=True)
class _Taught:
    """The result of a training.

    Attributes:
        teacher: The teacher's name.
        mode: The mode in which it embedded.
        rows: Results on held-out sets of all models except the trained student, by name.
        losses: Mean loss of each epoch.
        seconds: Seconds of training.
    """

    teacher: str
    mode: Mode
    rows: dict[str, dict[str, Measured]]
    losses: list[float]
    seconds: float


def _teach(config: GraceConfig, device: torch.device, texts: list[str], folder: Path) -> _Taught:
    """Train the student and write it to the folder."""
    settings, evaluation = config.job.distill, config.evaluation
    name = minilm_folder() if settings.student == MINILM else settings.student
    rows: dict[str, dict[str, Measured]] = {}
    with closing(build_encoder(config, device)) as teacher:
        if name is None:
            check_own_student(teacher)
        mode = config.job.encode.mode or teacher.mode
        targets = _as_teacher(config, teacher, mode, config.callbacks.progress == "bar")(
            texts, role_of(config.job.role, None)
        )
        finite = np.isfinite(targets).all(axis=1)
        if not finite.all():
            raise DataError(f"the teacher's embedding of {texts[int(np.argmin(finite))]!r} is not finite")
        with _without_cache(teacher):
            rows[TEACHER] = measure(evaluation, _as_teacher(config, teacher, mode))
            if mode != "prompt_only":
                rows[PROMPT_ONLY] = measure(evaluation, _as_teacher(config, teacher, "prompt_only"))
        teacher.engine.sleep()
        if name is None:
            student = own_student(teacher, settings.lora_rank, config.seed)
        else:
            student = load_student(name, device)
            rows[BEFORE] = measure(evaluation, _as_student(config, student))
            match_width(student, texts, targets)
        start = time.monotonic()
        losses = train_student(
            student,
            texts,
            targets,
            settings,
            seed=config.seed,
            bf16=config.hardware.precision == "bf16-mixed",
            progress=config.callbacks.progress == "bar",
        )
        seconds = time.monotonic() - start
        with atomic_folder(folder) as unfinished:
            save_student(student, unfinished, backbone=teacher if name is None else None)
        return _Taught(teacher.name, mode, rows, losses, seconds)


def _texts(config: GraceConfig, console: Console) -> list[str]:
    """Return the corpus's distinct texts, without those of the held-out sets."""
    rows, *_ = checked_rows(config)
    heldout = heldout_texts(config.evaluation, Path(config.cache_dir)).values()
    known = {normalized(text) for texts in heldout for text in texts}
    distinct = dict.fromkeys(row.text for row in rows)
    texts = [text for text in distinct if normalized(text) not in known]
    if len(texts) < len(distinct):
        left_out = f"{len(distinct) - len(texts)} texts of evaluation.sets are left out"
        console.print(left_out, highlight=False, soft_wrap=True)
    least = config.job.distill.batch_size
    if len(texts) < least:
        raise DataError(
            f"job.input={config.job.input}: {len(texts)} distinct texts, fewer than one batch of "
            f"job.distill.batch_size={least}: give more texts, or set job.distill.batch_size={max(3, len(texts))}"
        )
    return texts


def _as_teacher(config: GraceConfig, teacher: GraceEncoder, mode: Mode, progress: bool = False) -> Embed:
    encode = config.job.encode

    def embed(texts: list[str], role: Role) -> Vectors:
        found = teacher.encode(
            texts,
            batch_size=encode.batch_size,
            show_progress_bar=progress,
            mode=mode,
            role=role,
            temperature=encode.temperature,
            seed=config.seed,
            samples=encode.samples,
        )
        return np.asarray(found)

    return embed


def _as_student(config: GraceConfig, student: SentenceTransformer) -> Embed:
    size = config.job.encode.batch_size
    return lambda texts, role: np.asarray(student.encode(texts, batch_size=size, show_progress_bar=False))


@contextmanager
def _without_cache(encoder: GraceEncoder) -> Iterator[None]:
    """Turn the cache off inside the block, so that times are the model's."""
    cache, encoder.cache = encoder.cache, None
    try:
        yield
    finally:
        encoder.cache = cache


def _untrained(config: GraceConfig, mode: Mode) -> dict[str, ItemScores]:
    """Return the items from before the teacher's training, by set, if `job.model` is its run folder and has them."""
    model = config.job.model
    assert model is not None  # checked by JobConfig
    before = stored_results(replace(config, run_dir=str(Path(model).expanduser()))).get("before", {})
    return {name: result.prompt_only if mode == "prompt_only" else result.rationale for name, result in before.items()}


def _figures(reports: list[SetReport]) -> dict[str, float]:
    figures = {}
    for report in reports:
        start, kept = f"distill/{report.name}", report.kept(STUDENT)
        for row in (TEACHER, STUDENT):
            figures[f"{start}/{row}"] = report.rows[row].items.figure()
            figures[f"{start}/{row}_ms"] = report.rows[row].ms_per_text or 0.0
        if kept is not None:
            figures[f"{start}/kept"] = kept
    return figures
