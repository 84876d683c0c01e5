"""Files behind a URL: fetched once, then read like any other."""

from pathlib import Path

from grace_exp.errors import DataError


def fetch(name: str, url: str, cache_dir: Path) -> Path:
    """Download a file into the cache, or find it there; one that has changed at its address is fetched again.

    Args:
        name: Of the source in the recipe, for messages.
        url: Anything that `fsspec` reads: https://, hf://, s3:// (with its package), ...
        cache_dir: Files go into its folder `downloads`.

    Raises:
        DataError: The file cannot be had.
    """
    from datasets import DownloadConfig, DownloadManager

    config = DownloadConfig(cache_dir=cache_dir / "downloads", disable_tqdm=True)
    try:
        return Path(DownloadManager(download_config=config).download(url))
    except Exception as error:  # network, name, rights: every file system raises errors of its own
        raise DataError(
            f"data.sources.{name}.path={url!r} could not be fetched: {type(error).__name__}: {error}\n"
            f"Fetch it by other means and give the local file: data.sources.{name}.path=FILE"
        ) from error
