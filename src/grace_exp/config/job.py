"""What the command does."""

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
    """How texts become embeddings, where that is what a job does (`GraceEncoder.encode`)."""

    mode: Literal["rationale", "prompt_only", "query_only", "document_only", "adaptive"] | None = None
    """Who writes rationales: every text, none, one side, or the texts that the rule of job=fit_adaptive chooses; null:
    as the model was trained."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Rationale budget; null: the model's own (`job.model`), or rollout.max_tokens."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0 is greedy; above it, sampling is seeded by `seed`."""
    samples: Annotated[int, Field(ge=1)] = 1
    """Rationales a text; the embedding is the mean of their unit vectors. More than one needs a temperature."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Texts at a time, halved where memory runs out; an interruption loses one batch. conf/ sets 64, and
    256 with vLLM."""
    normalize: bool = False
    """Bring every embedding to length 1."""
    truncate_dim: Annotated[int, Field(ge=1)] | None = None
    """Keep only the first dimensions."""
    cache_gib: Annotated[float, Field(ge=0)] = 20.0
    """Size limit of the cache of rationales and embeddings under `cache_dir`, GiB; 0: no cache, and nothing resumes."""

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
    """What `job=plan` assumes where nothing was measured: its hours are estimates, and say so."""

    mfu: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Share of the device's peak that scoring and updates reach, model FLOPs only."""
    decode_efficiency: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the memory bandwidth that decoding reaches."""
    prompt_tokens: Annotated[int, Field(ge=1)] = 160
    """Mean prompt, tokens; prompt.max_tokens where that is less."""
    rationale_tokens: Annotated[int, Field(ge=1)] = 500
    """Mean rationale, tokens; rollout.max_tokens where that is less."""
    gpus: tuple[GpuCount, ...] = ()
    """On how many GPUs to plan an epoch of `triplets` and the embedding of each `corpus` as well (docs/scale.md): 8 or
    fewer, or a multiple of 8."""
    triplets: Annotated[int, Field(ge=1)] = 1_500_000
    """Instances of that epoch: those of the paper's data."""
    corpus: tuple[Annotated[int, Field(ge=1)], ...] = (10_000_000, 1_000_000_000)
    """Texts."""
    network: Annotated[float, Field(gt=0)] = 25.0
    """Bandwidth of a machine's network, GB/s."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class JobConfig:
    """The job and its size."""

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
    """GRACE steps: rollouts, rewards, then batch_size / mini_batch_size optimizer updates."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Instances a step, over all processes."""
    resume: str | None = None
    """A checkpoint file, or a run folder whose newest checkpoint is taken."""
    small_experiment: str | None = None
    """The experiment that shows the same without GPU or hub; named in the error when this one cannot run."""
    model: str | None = None
    """embed: a run folder, exported or other model folder, or hub name, used with the prompt, pooling and budget it was
    trained with (`GraceEncoder.from_pretrained`); null: the configured backbone, with the weights of `resume`. distill:
    the teacher, which must be given."""
    input: str | None = None
    """embed, distill: the texts: .txt (one a line), .jsonl, .csv, .tsv, .parquet, or a glob of them. mine_negatives:
    pairs, with the columns query and positive; fit_adaptive: such pairs, held out from training.
    fit_center: the reference sample, as for embed; null: texts of the configured training data."""
    center_texts: Annotated[int, Field(ge=2)] = 256
    """fit_center: texts drawn of the reference sample, at most."""
    column: Annotated[str, Field(min_length=1)] = "text"
    """embed, distill: where the texts are in `input`, unless it is plain text."""
    id_column: Annotated[str, Field(min_length=1)] | None = None
    """embed: the column whose ids go with the texts; null: the row's number in the input, from 0."""
    shard_rows: Annotated[int, Field(ge=1)] | None = None
    """embed: texts a file, numbered files, of which a restart keeps those that are whole; null: one file."""
    worker: Annotated[str, Field(pattern=r"^\d+/\d+$")] | None = None
    """embed: i/n makes this command one of n, on as many machines, that share out the files of `shard_rows`: it takes
    those whose number leaves i when divided by n, i from 0. null: all of them."""
    role: Literal["query", "document"] = "document"
    """embed, distill: what the texts are: the instruction they get, and the side in one-sided modes."""
    output: Annotated[str, Field(pattern=r"\.(npy|parquet|jsonl)$")] | None = None
    """embed: .npy (float32 [texts, hidden]) or .parquet (id, text, rationales, embedding); ids, texts and rationales
    also as JSONL beside. mine_negatives: .jsonl or .parquet."""
    mine: MiningConfig = Field(default_factory=MiningConfig)
    distill: DistillConfig = Field(default_factory=DistillConfig)
    adaptive: AdaptiveConfig = Field(default_factory=AdaptiveConfig)
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """serve: the address to listen on; 0.0.0.0 for all of this machine's."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """serve: 0 takes a free one, which is printed."""
    serve: ServeConfig = Field(default_factory=ServeConfig)
    text_a: Annotated[str, Field(min_length=1)] | None = None
    """explain: the first text, in the role query."""
    text_b: Annotated[str, Field(min_length=1)] | None = None
    """explain: the second text, in the role document."""
    pairs: Annotated[str, Field(pattern=r"\.(jsonl|csv|tsv|parquet)$")] | None = None
    """explain: a file of pairs, with the columns text_a and text_b, instead of these two texts."""
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
