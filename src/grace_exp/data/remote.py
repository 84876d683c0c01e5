"""Download files from a URL once, and read them like local files."""

import hashlib
from pathlib import Path
from urllib.parse import urlsplit

from grace_exp.data.http_file import http_file
from grace_exp.errors import DataError


def fetch(name: str, url: str, cache_dir: Path) -> Path:
    """Return a file from the cache; it is downloaded if it is not there, or if it has changed at its address.

    Files of the hub (hf://, https://huggingface.co/) and over HTTP are checked, and broken downloads are resumed. Other
    file systems start again.

    Args:
        name: Name of the source in the recipe, for messages.
        url: Any URL that `fsspec` reads: https://, hf://, s3:// (with its package), ...
        cache_dir: The file goes into its folder `downloads`.

    Raises:
        DataError: The file cannot be downloaded.
    """
    folder = cache_dir / "downloads"
    try:
        return http_file(url, folder) if _is_plain_http(url) else _by_datasets(url, folder)
    except Exception as error:  # network, name, rights: every file system raises its own errors
        raise DataError(
            f"data.sources.{name}.path={url!r} could not be fetched: {type(error).__name__}: {error}\n"
            f"Fetch it by other means and give the local file: data.sources.{name}.path=FILE"
        ) from error


def _is_plain_http(url: str) -> bool:
    """Whether a URL is plain HTTP: not of the hub, and not one that the `datasets` library handles specially."""
    import datasets

    parts = urlsplit(url)
    others = (urlsplit(datasets.config.HF_ENDPOINT).netloc, "drive.google.com")
    return parts.scheme in ("http", "https") and parts.netloc not in others


def _by_datasets(url: str, folder: Path) -> Path:
    from datasets import DownloadConfig, DownloadManager

    config = DownloadConfig(cache_dir=folder, disable_tqdm=True)
    found = Path(DownloadManager(download_config=config).download(url))
    wanted = Path(urlsplit(url).path).name
    if found.name == wanted or not Path(wanted).suffix:
        return found
    # The library names files by digests; the ending, which tells compressed files, is in the URL.
    link = folder / hashlib.sha256(str(found).encode()).hexdigest()[:32] / wanted
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.exists():
        link.unlink(missing_ok=True)
        link.symlink_to(found.resolve())
    return link
