"""Defaults that follow from the engine, in `conf/` as `${importance_mode:...}` and `${encode_batch:...}`."""

from omegaconf import OmegaConf


def importance_mode(engine: str, dtype: str, precision: str, algorithm: str, overlap: str = "none") -> str:
    """The default of `objective.importance.mode`.

    An engine in bfloat16 has other probabilities than a trainer whose weights and residual stream are float32. The
    transformers engine computes with the policy's own modules, and copg is right without weights. Rationales that are
    written a step ahead come from other weights than the trainer's.

    Args:
        engine: `rollout.engine`.
        dtype: `rollout.vllm.dtype`.
        precision: `hardware.precision`.
        algorithm: `objective.algorithm`.
        overlap: `rollout.overlap`.
    """
    coarse = dtype == "bfloat16" or (dtype == "auto" and precision.startswith("bf16"))
    other = (engine != "transformers" and coarse) or overlap != "none"
    return "token" if other and algorithm != "copg" else "none"


def encode_batch(engine: str) -> int:
    """The default of `job.encode.batch_size`: vLLM is fast with many texts.

    Transformers pads to the longest of few; half of them on each of two cores are as many rows as a product needs.
    """
    return 64 if engine == "transformers" else 256


def register_engine_defaults() -> None:
    """Makes them known to OmegaConf."""
    for resolver in (importance_mode, encode_batch):
        OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)
