"""Settings that vLLM's engine object, its server command and its CPU kernels must agree on."""

import platform

BLOCK_TOKENS = 16 if platform.machine() == "x86_64" else 32
"""Tokens of a block of the key-value cache: few, because rationales of a text share the whole blocks of its prompt.

Kernels of vLLM's CPU build for other processors need multiples of 32.
"""
CPU_NORMS = "grace_exp"
"""Name under which `rollout.vllm.cpu` registers its norms with vLLM."""
CPU_NORM_PRIORITY = {"rms_norm": [CPU_NORMS, "native"], "fused_add_rms_norm": [CPU_NORMS, "native"]}
"""vLLM's `ir_op_priority` that chooses these norms."""
