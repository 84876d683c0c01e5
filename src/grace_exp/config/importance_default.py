"""Who corrects for an engine that computes less exactly than the trainer?"""

from omegaconf import OmegaConf


def importance_mode(engine: str, dtype: str, precision: str, algorithm: str) -> str:
    """The default of `objective.importance.mode`.

    An engine in bfloat16 has other probabilities than a trainer whose weights and residual stream are float32. The
    transformers engine computes with the policy's own modules, and copg is right without weights.

    Args:
        engine: `rollout.engine`.
        dtype: `rollout.vllm.dtype`.
        precision: `hardware.precision`.
        algorithm: `objective.algorithm`.
    """
    coarse = dtype == "bfloat16" or (dtype == "auto" and precision.startswith("bf16"))
    return "token" if engine != "transformers" and coarse and algorithm != "copg" else "none"


def register_importance_mode() -> None:
    """Makes `${importance_mode:...}` known to OmegaConf."""
    OmegaConf.register_new_resolver("importance_mode", importance_mode, replace=True)
