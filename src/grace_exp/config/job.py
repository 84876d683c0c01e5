"""Which job the command runs, and its settings."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator
from pydantic.dataclasses import dataclass

from grace_exp.config.adaptive import AdaptiveConfig
from grace_exp.config.base import STRICT
from grace_exp.config.mining import MiningConfig
from grace_exp.config.serving import ServeConfig
from grace_exp.config.student import DistillConfig


@dataclass(config=STRICT, frozen=True, kw_only=True)
class EncodeConfig:
    """How a job embeds texts (`GraceEncoder.encode`)."""

    mode: Literal["rationale", "prompt_only", "query_only", "document_only", "adaptive"] | None = None
    """Which texts get a rationale: all, none, one side, or those that the rule of job=fit_adaptive chooses; null: as in
    the model's training."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Token limit of a rationale; null: the model's own (`job.model`), or rollout.max_tokens."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0 is greedy; above it, sampling is seeded by `seed`."""
    samples: Annotated[int, Field(ge=1)] = 1
    """Rationales per text; the embedding is the mean of their unit vectors. More than one needs a temperature above
    0."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Texts in one batch; halved if memory runs out. An interruption loses one batch. conf/ sets 64, and 256 with
    vLLM."""
    normalize: bool = False
    """Scale every embedding to length 1."""
    truncate_dim: Annotated[int, Field(ge=1)] | None = None
    """Keep only so many first dimensions; null: all."""
    cache_gib: Annotated[float, Field(ge=0)] = 20.0
    """Size limit in GiB of the cache of rationales and embeddings under `cache_dir`; 0: no cache, and jobs cannot
    resume."""

    @model_validator(mode="after")
    def _samples_differ(self) -> Self:
        if self.samples > 1 and self.temperature == 0 and self.mode != "prompt_only":
            raise ValueError(
                f"samples={self.samples} with temperature=0 would write the same rationale {self.samples} times: set "
                "a temperature above 0"
            )
        return self


def _whole_machines(gpus: int) -> int:
    if gpus > 8 and gpus % 8:
        raise ValueError(f"gpus={gpus}: machines have 8, so 8 or fewer, or a multiple of 8")
    return gpus


GpuCount = Annotated[int, Field(ge=1), AfterValidator(_whole_machines)]


@dataclass(config=STRICT, frozen=True, kw_only=True)
class PlanConfig:
    """What `job=plan` assumes where nothing was measured; hours that depend on it are marked as estimates."""

    mfu: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Share of the device's peak that scoring and updates reach, counting the model's FLOPs only."""
    decode_efficiency: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the memory bandwidth that decoding reaches."""
    prompt_tokens: Annotated[int, Field(ge=1)] = 160
    """Mean length of a prompt in tokens; prompt.max_tokens if that is less."""
    rationale_tokens: Annotated[int, Field(ge=1)] = 500
    """Mean length of a rationale in tokens; rollout.max_tokens if that is less."""
    gpus: tuple[GpuCount, ...] = ()
    """Numbers of GPUs for which an epoch of `triplets` and the embedding of each `corpus` are planned too
    (docs/scale.md): 8 or fewer, or a multiple of 8."""
    triplets: Annotated[int, Field(ge=1)] = 1_500_000
    """Number of instances of that epoch: by default those of the paper's data."""
    corpus: tuple[Annotated[int, Field(ge=1)], ...] = (10_000_000, 1_000_000_000)
    """Numbers of texts of the corpora."""
    network: Annotated[float, Field(gt=0)] = 25.0
    """Bandwidth of a machine's network, GB/s."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class JobConfig:
    """The job and its sizes."""

    name: Literal[
        "train",
        "evaluate",
        "prepare_data",
        "embed",
        "mine_negatives",
        "fit_adaptive",
        "fit_center",
        "distill",
        "serve",
        "explain",
        "report",
        "dashboard",
        "clear_cache",
        "plan",
    ] = "train"
    """Which job runs; job=NAME on the command line chooses its file of conf/job/."""
    steps: Annotated[int, Field(ge=1)] = 1000
    """Number of GRACE steps: rollouts, rewards, then batch_size / mini_batch_size optimizer updates."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Instances per step, over all processes."""
    resume: str | None = None
    """A checkpoint file, or a run folder, whose newest checkpoint is used."""
    small_experiment: str | None = None
    """An experiment that shows the same without GPU or hub; the error names it when this experiment cannot run."""
    model: str | None = None
    """embed: the model: a run folder, exported or other model folder, or hub name. It is used with the prompt, pooling
    and token limit of its training (`GraceEncoder.from_pretrained`). null: the configured backbone, with the weights of
    `resume`. distill: the teacher, which must be given."""
    input: str | None = None
    """embed, distill: the texts: .txt (one a line), .jsonl, .csv, .tsv, .parquet, or a glob of such files.
    mine_negatives: pairs, with the columns query and positive. fit_adaptive: such pairs, held out from training.
    fit_center: the reference sample, in the formats of embed; null: texts of the configured training data."""
    center_texts: Annotated[int, Field(ge=2)] = 256
    """fit_center: the most texts drawn from the reference sample."""
    column: Annotated[str, Field(min_length=1)] = "text"
    """embed, distill: the column of the texts, unless `input` is plain text."""
    id_column: Annotated[str, Field(min_length=1)] | None = None
    """embed: the column of the texts' ids; null: the row's number in the input, from 0."""
    shard_rows: Annotated[int, Field(ge=1)] | None = None
    """embed: texts per output file; a restart keeps the complete files; null: one file for all texts."""
    worker: Annotated[str, Field(pattern=r"^\d+/\d+$")] | None = None
    """embed: i/n makes this command worker i of n. The workers, on as many machines, share the files of `shard_rows`:
    worker i (from 0) writes every file whose number modulo n is i. null: one worker writes all files."""
    role: Literal["query", "document"] = "document"
    """embed, distill: the role of the texts: it chooses their instruction, and their side in one-sided modes."""
    output: Annotated[str, Field(pattern=r"\.(npy|parquet|jsonl)$")] | None = None
    """embed: .npy (float32 [texts, hidden]) or .parquet (id, text, rationales, embedding); ids, texts and rationales
    are also written as JSONL beside it. mine_negatives: .jsonl or .parquet."""
    mine: MiningConfig = Field(default_factory=MiningConfig)
    distill: DistillConfig = Field(default_factory=DistillConfig)
    adaptive: AdaptiveConfig = Field(default_factory=AdaptiveConfig)
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """serve: the address to listen on; 0.0.0.0 for all addresses of this machine."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """serve: the port; 0: any free port, which is printed."""
    serve: ServeConfig = Field(default_factory=ServeConfig)
    text_a: Annotated[str, Field(min_length=1)] | None = None
    """explain: the first text, in the role query."""
    text_b: Annotated[str, Field(min_length=1)] | None = None
    """explain: the second text, in the role document."""
    pairs: Annotated[str, Field(pattern=r"\.(jsonl|csv|tsv|parquet)$")] | None = None
    """explain: a file of pairs, with the columns text_a and text_b; it replaces these two texts."""
    run: Annotated[list[str], Field(min_length=1)] | str | None = None
    """report, dashboard: the folder of a run or a sweep, or a list of folders of runs."""
    publish: bool = False
    """dashboard: also save workspace and report on W&B, which needs a login."""
    encode: EncodeConfig = Field(default_factory=EncodeConfig)
    plan: PlanConfig = Field(default_factory=PlanConfig)

    @property
    def share(self) -> tuple[int, int]:
        """`worker` as numbers: which one, of how many."""
        number, _, workers = (self.worker or "0/1").partition("/")
        return int(number), int(workers)

    @property
    def run_folders(self) -> list[str]:
        """`run` as a list."""
        return [self.run] if isinstance(self.run, str) else list(self.run or ())

    @model_validator(mode="after")
    def _embed_has_what_it_needs(self) -> Self:
        if self.name in ("embed", "mine_negatives"):
            missing = [f"job.{key}" for key in ("input", "output") if getattr(self, key) is None]
            if missing:
                raise ValueError(f"job={self.name} needs {' and '.join(missing)}")
            wrong = ".jsonl" if self.name == "embed" else ".npy"
            if str(self.output).endswith(wrong):
                right = ".npy or .parquet" if self.name == "embed" else ".jsonl or .parquet"
                raise ValueError(f"output={self.output!r}: job={self.name} writes {right}")
        number, workers = self.share
        if not number < workers:
            raise ValueError(f"worker={self.worker!r}: i/n counts from 0, so i is less than n: 0/{max(1, workers)}")
        if self.worker is not None and (self.name != "embed" or self.shard_rows is None):
            raise ValueError(
                f"worker={self.worker!r} with job={self.name}, shard_rows={self.shard_rows}: workers share out the "
                "numbered files of job=embed; set job.shard_rows, as job.shard_rows=100000"
            )
        if self.name == "distill":
            missing = [f"job.{key}" for key in ("model", "input") if getattr(self, key) is None]
            if missing:
                raise ValueError(f"job=distill needs {' and '.join(missing)}: a teacher, as a run folder, and a corpus")
            if self.encode.truncate_dim is not None:
                raise ValueError(
                    f"encode.truncate_dim={self.encode.truncate_dim} with job=distill: a student learns whole "
                    "embeddings; set job.encode.truncate_dim=null"
                )
        if self.name == "fit_adaptive" and (self.input is None or (self.model is None and self.resume is None)):
            raise ValueError(
                "job=fit_adaptive needs job.model, a run folder or an exported model, and job.input, pairs that it was "
                "not trained on"
            )
        if self.name == "fit_center" and self.model is None:
            raise ValueError("job=fit_center needs job.model: a run folder with an export, or an exported model")
        both = self.text_a is not None and self.text_b is not None
        if self.name == "explain" and both == (self.pairs is not None):
            raise ValueError("job=explain needs job.text_a and job.text_b, or a file of such pairs: job.pairs")
        if self.name in ("report", "dashboard") and self.run is None:
            raise ValueError(
                f"job={self.name} needs job.run=<folder of a run or sweep>, or job.run=[<folder>,<folder>]"
            )
        if self.model is not None and self.resume is not None:
            raise ValueError(f"model={self.model!r} with resume={self.resume!r}: name the weights once")
        return self
