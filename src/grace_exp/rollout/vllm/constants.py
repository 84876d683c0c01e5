"""Settings on which vLLM's engine object, its server command and its CPU kernels must agree."""

import platform

BLOCK_TOKENS = 16 if platform.machine() == "x86_64" else 32
"""Tokens per block of the key-value cache. It is small, because rationales share only whole blocks of their prompt.

Kernels of vLLM's CPU build for other processors need multiples of 32.
"""
CPU_NORMS = "grace_exp"
"""Name under which `rollout.vllm.cpu` registers its norms with vLLM."""
CPU_NORM_PRIORITY = {"rms_norm": [CPU_NORMS, "native"], "fused_add_rms_norm": [CPU_NORMS, "native"]}
"""Value of vLLM's `ir_op_priority` that chooses these norms."""
