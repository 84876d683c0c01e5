"""Delete the encoders' cache."""

from grace_exp.config.root import GraceConfig
from grace_exp.jobs.run_encoder import encoder_cache
from grace_exp.jobs.terminal import our_console


def clear_cache(config: GraceConfig) -> dict[str, float]:
    """Empty the cache under `cache_dir`.

    Returns:
        `cache/freed_bytes`.

    Raises:
        CacheError: The cache's file is damaged, or in use for longer than a minute.
    """
    cache = encoder_cache(config)
    freed = cache.clear()
    cache.close()
    our_console().print(f"{freed / 1e6:.1f} MB freed in {cache.path}", highlight=False, soft_wrap=True)
    return {"cache/freed_bytes": float(freed)}
