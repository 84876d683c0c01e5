"""The machine."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from grace_exp.config.base import STRICT

TokenBudget = Annotated[int, Field(ge=1)] | Literal["auto"]
_UNPLANNED = 4096


@dataclass(config=STRICT, frozen=True, kw_only=True)
class HardwareConfig:
    """Devices, precision, and how much a forward may hold."""

    name: Annotated[str, Field(min_length=1)]
    """Name of the choice."""
    accelerator: Literal["cpu", "gpu"] = "cpu"
    """Where the policy is."""
    devices: Annotated[int, Field(ge=1)] = 1
    """Processes per node; on GPUs one each."""
    nodes: Annotated[int, Field(ge=1)] = 1
    """Machines; each runs `devices` processes."""
    strategy: Literal["auto", "ddp", "fsdp2"] = "auto"
    """auto: one process. ddp: each process holds the whole model. fsdp2: each holds its part of weights, gradients and
    moments, and whole layers while it computes them; `share_head` has no effect.
    """
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """Lightning's names. bf16-mixed keeps float32 weights: at a learning rate of 1e-6 bf16 weights would not move."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """CPU threads of torch; null leaves torch's choice."""
    linear: Literal["auto", "torch", "onednn"] = "auto"
    """Library of float32 matrix products on CPUs. auto: onednn where the CPU has AVX-512 and is not Intel's, for there
    PyTorch's own runs at less than half the speed; else torch. Results differ in their last bits.
    """
    packing: bool = True
    """Compute a prompt once for all its rationales (one row with a block mask); false: one padded row a rationale."""
    packed_attention: Literal["mask", "flex"] = "mask"
    """How packed rows attend. mask: SDPA behind a dense mask, on any device; flex: FlexAttention behind a block mask,
    which skips what is masked, on GPUs. It is compared with plain rows at its first use.
    """
    pad_to: Annotated[int, Field(ge=1)] = 1
    """Rows of a micro-batch are padded to a multiple of so many tokens: GPUs prepare kernels for each new width."""
    compile: bool = False
    """Compile the decoder's layers for scoring and updates (torch.compile): some minutes at the start."""
    share_head: bool = False
    """Compute what all rows of a forward begin with (chat template, system prompt) once. For short texts; it takes a
    mask, which GPUs' fastest attention kernels do not have.
    """
    keep_forward: bool | Literal["auto"] = "auto"
    """Score the group's rationales with gradients and keep that forward for the update, which then needs none of its
    own, for the memory of the whole batch's activations. Needs one update a step, and nothing that would exchange
    rationales between the two. auto: where that holds, and memory has room by the run's plan.
    """
    one_pass: bool | Literal["auto"] = "auto"
    """Embeddings from the hidden states that a text had while its rationale was written, instead of a second forward:
    of whatever is evaluated or embedded, and in training of the rationales that are not trained. The first batch is
    compared with the forward. auto: where engine and precision (float32) allow it, and back to the forward, with a
    warning, if they differ beyond rounding; true: an error then; false: never.
    """
    score_tokens: TokenBudget = 8192
    """Token budget of a micro-batch without gradients (rows x longest row); auto: what memory has room for."""
    train_tokens: TokenBudget = 4096
    """Token budget of a micro-batch with gradients; auto: what memory has room for, 16384 at most."""
    max_row_tokens: Annotated[int, Field(ge=1)] = 4096
    """Longest packed row: attention in a row costs its square, so large groups are split over several rows."""
    logprob_chunk_tokens: Annotated[int, Field(ge=1)] = 512
    """Positions whose logits exist at one time (x vocabulary x 4 bytes)."""
    memory_gib: Annotated[float, Field(gt=0)] | None = None
    """Memory of one device, GiB, that the run is planned for (`job=plan`, budgets of `auto`); null: what it has."""
    peak_tflops: Annotated[float, Field(gt=0)] | None = None
    """Dense bf16 matrix products of one device, TFLOP/s, for `perf/mfu` and the plan's hours; null: by its name."""
    memory_bandwidth: Annotated[float, Field(gt=0)] | None = None
    """Of one device, GB/s, for the plan's hours of decoding; null: by its name."""

    @property
    def keeps_forward(self) -> bool:
        """`keep_forward` as a fact: false where nothing has planned `auto` yet."""
        return self.keep_forward is True

    @property
    def score_budget(self) -> int:
        """`score_tokens` as a number: that of a small GPU where nothing has planned `auto` yet."""
        return _UNPLANNED if self.score_tokens == "auto" else self.score_tokens

    @property
    def train_budget(self) -> int:
        """`train_tokens` as a number, in the same way."""
        return _UNPLANNED if self.train_tokens == "auto" else self.train_tokens
