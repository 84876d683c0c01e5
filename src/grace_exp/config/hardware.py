"""The machine."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from grace_exp.config.base import STRICT

TokenBudget = Annotated[int, Field(ge=1)] | Literal["auto"]
_UNPLANNED = 4096


@dataclass(config=STRICT, frozen=True, kw_only=True)
class HardwareConfig:
    """Devices, precision, and token budgets of a forward pass."""

    name: Annotated[str, Field(min_length=1)]
    """Name of this choice of `hardware=`."""
    accelerator: Literal["cpu", "gpu"] = "cpu"
    """The device of the policy."""
    devices: Annotated[int, Field(ge=1)] = 1
    """Processes per node; on GPUs one process per GPU."""
    nodes: Annotated[int, Field(ge=1)] = 1
    """Number of machines; each runs `devices` processes."""
    strategy: Literal["auto", "ddp", "fsdp2"] = "auto"
    """auto: one process. ddp: each process holds the whole model. fsdp2: each process holds a part of the weights,
    gradients and moments, and gathers one layer at a time; `share_head` has no effect.
    """
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """Precision by Lightning's names. bf16-mixed keeps float32 weights: at a learning rate of 1e-6 bf16 weights would
    not change."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """Number of CPU threads of torch; null: torch's default."""
    linear: Literal["auto", "torch", "onednn"] = "auto"
    """Library of float32 matrix products on CPUs. auto: onednn where the CPU has AVX-512 and is not made by Intel,
    because PyTorch's default runs there at less than half the speed; torch elsewhere. Results differ in their last
    bits.
    """
    packing: bool = True
    """Compute a prompt once for all its rationales (one row with a block mask); false: one padded row a rationale."""
    packed_attention: Literal["mask", "flex"] = "mask"
    """Attention of packed rows. mask: SDPA with a dense mask, on any device; flex: FlexAttention with a block mask,
    which skips masked blocks, on GPUs. Its first result is compared with that of plain rows.
    """
    pad_to: Annotated[int, Field(ge=1)] = 1
    """Rows of a micro-batch are padded to a multiple of so many tokens, because GPUs prepare kernels for each new
    width."""
    compile: bool = False
    """Compile the decoder's layers for scoring and updates (torch.compile); this takes some minutes at the start."""
    share_head: bool = False
    """Compute the common beginning of all rows of a forward (chat template, system prompt) once. It helps with short
    texts; it needs an attention mask, which the fastest attention kernels of GPUs do not support.
    """
    keep_forward: bool | Literal["auto"] = "auto"
    """Score the group's rationales with gradients and use the same forward for the update. This saves the update's
    forward, and needs memory for the activations of the whole batch. It requires one update a step, and no setting that
    exchanges rationales between scoring and update. auto: on if these hold and the run's plan finds enough memory.
    """
    one_pass: bool | Literal["auto"] = "auto"
    """Read embeddings from the hidden states of decoding, instead of a second forward: for all texts that are evaluated
    or embedded, and in training for the rationales that are not trained. The first batch is compared with the forward.
    auto: on where engine and precision (float32) allow it; if the two differ beyond rounding, a warning is given and
    the forward is used. true: such a difference is an error. false: off.
    """
    score_tokens: TokenBudget = 8192
    """Token budget of a micro-batch without gradients (rows x longest row); auto: as much as fits into memory."""
    train_tokens: TokenBudget = 4096
    """Token budget of a micro-batch with gradients; auto: as much as fits into memory, 16384 at most."""
    max_row_tokens: Annotated[int, Field(ge=1)] = 4096
    """Longest packed row, in tokens. Attention costs the square of a row's length, so large groups are split over
    several rows."""
    logprob_chunk_tokens: Annotated[int, Field(ge=1)] = 512
    """Number of positions whose logits exist at one time (x vocabulary x 4 bytes)."""
    memory_gib: Annotated[float, Field(gt=0)] | None = None
    """Memory of one device in GiB, for `job=plan` and for budgets of `auto`; null: the device's own."""
    peak_tflops: Annotated[float, Field(gt=0)] | None = None
    """Dense bf16 matrix products of one device in TFLOP/s, for `perf/mfu` and the plan's hours; null: by the device's
    name."""
    memory_bandwidth: Annotated[float, Field(gt=0)] | None = None
    """Memory bandwidth of one device in GB/s, for the plan's hours of decoding; null: by the device's name."""

    @property
    def keeps_forward(self) -> bool:
        """`keep_forward` as true or false; false if `auto` has not been planned yet."""
        return self.keep_forward is True

    @property
    def score_budget(self) -> int:
        """`score_tokens` as a number; if `auto` has not been planned yet, the budget of a small GPU."""
        return _UNPLANNED if self.score_tokens == "auto" else self.score_tokens

    @property
    def train_budget(self) -> int:
        """`train_tokens` as a number; if `auto` has not been planned yet, the budget of a small GPU."""
        return _UNPLANNED if self.train_tokens == "auto" else self.train_tokens
