"""Make vLLM's CPU build fast: packed weights that follow the policy, simple norms, and another sampler.

The gains are measured by benchmarks/rollout.py. vLLM leaves some of this to a compiler, which takes longer than it
saves.
"""

from typing import Any

import torch
import vllm._custom_ops as cpu_ops
from torch import Tensor, nn
from vllm import ir
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend, MultipleOf
from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

from grace_exp.rollout.sampling import draw
from grace_exp.rollout.vllm.constants import BLOCK_TOKENS, CPU_NORMS


def prepare() -> None:
    """Change vLLM in this process before the engine is made; a second call does nothing."""
    # With oneDNN every layer uses a packed copy of its weight. vLLM makes the copy once and drops the weight, so the
    # copy of a tied output head would not follow new weights. `pack` makes the copies after each sync.
    cpu_ops._supports_onednn = False
    if CPU_NORMS not in ir.ops.rms_norm.impls:
        ir.ops.rms_norm.register_impl(CPU_NORMS, supports_args=_plain)(_rms_norm)
        ir.ops.fused_add_rms_norm.register_impl(CPU_NORMS, supports_args=_plain_sum, inplace=True)(_fused_add_rms_norm)
        # vLLM offers multiples of 32 only, but has a kernel for this size: short prompts then share most of their keys.
        CPUAttentionBackend.get_supported_kernel_block_sizes = staticmethod(
            lambda kv_cache_spec=None: [MultipleOf(BLOCK_TOKENS)]
        )
        TopKTopPSampler.forward_cpu = _sampler(TopKTopPSampler.forward_cpu)


def pack(model: nn.Module) -> None:
    """Give every linear layer oneDNN's packed copy of its present weight, which doubles the speed of decoding."""
    cpu_ops._supports_onednn = True
    try:
        for layer in model.modules():
            if hasattr(layer, "cpu_linear"):
                dispatch_cpu_unquantized_gemm(layer, remove_weight=False)
    finally:
        cpu_ops._supports_onednn = False


def _plain(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> bool:
    return variance_size is None and weight is not None and weight.dtype == x.dtype and x.is_contiguous()


def _plain_sum(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> bool:
    return _plain(x, weight, epsilon, variance_size) and x_residual.is_contiguous()


def _rms_norm(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> Tensor:
    normed = torch.empty_like(x)
    torch.ops._C.rms_norm(normed, x, weight, epsilon)
    return normed


def _fused_add_rms_norm(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> tuple[Tensor, Tensor]:
    torch.ops._C.fused_add_rms_norm(x, x_residual, weight, epsilon)
    return x, x_residual


def _sampler(theirs: Any) -> Any:
    """Draw one uniform number a row instead of noise for every token, which took as long as four layers."""

    def forward_cpu(
        self: Any, logits: Tensor, generators: dict[int, torch.Generator], k: Tensor | None, p: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if k is not None or p is not None or self.logprobs_mode != "processed_logprobs":
            sampled: tuple[Tensor, Tensor | None] = theirs(self, logits, generators, k, p)
            return sampled
        logprobs = logits.log_softmax(dim=-1, dtype=torch.float32)
        uniforms = torch.rand(len(logits), dtype=torch.float64)
        for row, generator in generators.items():
            uniforms[row] = torch.rand((), generator=generator, dtype=torch.float64)
        return draw(logprobs.exp(), uniforms), logprobs

    return forward_cpu
