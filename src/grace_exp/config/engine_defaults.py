"""Defaults that depend on the engine; `conf/` names them `${importance_mode:...}` and `${encode_batch:...}`."""

from omegaconf import OmegaConf


def importance_mode(engine: str, dtype: str, precision: str, algorithm: str, overlap: str = "none") -> str:
    """Return the default of `objective.importance.mode`.

    An engine in bfloat16 computes other probabilities than a trainer with float32 weights and residual stream. The
    transformers engine computes with the policy's own modules, so its probabilities agree. copg needs no importance
    weights. Rationales written a step ahead come from older weights than the trainer's.

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
    """Return the default of `job.encode.batch_size`: large for vLLM, which is fast with many texts.

    The transformers engine pads all texts to the longest one, so its batch is smaller. Split over two CPU cores, it
    still has enough rows for an efficient matrix product.
    """
    return 64 if engine == "transformers" else 256


def register_engine_defaults() -> None:
    """Register these defaults with OmegaConf."""
    for resolver in (importance_mode, encode_batch):
        OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)
