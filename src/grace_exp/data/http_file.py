"""Download a file over HTTP, resume after broken connections, and check its size."""

import hashlib
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock

from grace_exp.tracking.summary import write_json_atomic

_MOST_TRIES = 3
"""Calls in a row that bring no new bytes before the download fails; each call makes several attempts."""


@dataclass(frozen=True)
class _Remote:
    """A server's information on a file; None where it gives none."""

    size: int | None
    etag: str | None
    modified: str | None

    @property
    def version(self) -> str | None:
        """A value that changes with the content."""
        return self.etag or self.modified


def http_file(url: str, folder: Path) -> Path:
    """Return the file in `folder`; it is downloaded if it is not there, or if it has changed on the server.

    A download that a broken connection or a killed process left unfinished is resumed (HTTP ranges) if the server still
    has the same version; a server without ranges sends the whole file again. If the server does not answer, the copy of
    an earlier run is used, with a warning.

    Args:
        url: http:// or https://
        folder: The folder of the file; processes may share it.

    Raises:
        FileNotFoundError: There is no such file, or the server does not answer and there is no copy.
        OSError: The file could not be downloaded completely.
    """
    place = folder / hashlib.sha256(url.encode()).hexdigest()[:32]
    place.mkdir(parents=True, exist_ok=True)
    known = place / "version.json"
    with FileLock(place / ".lock"):
        earlier: dict[str, Any] = json.loads(known.read_text(encoding="utf-8")) if known.is_file() else {}
        copy = place / str(earlier["file"]) if earlier else None
        try:
            remote = _ask(url)
        except FileNotFoundError as error:
            if copy is None or not copy.is_file() or not _is_unreachable(error):
                raise
            warnings.warn(f"{url} does not answer: using the copy that was fetched before ({copy})", stacklevel=2)
            return copy
        if copy is not None and copy.is_file() and _same(earlier, remote):
            return copy
        file, remote = _download(url, place, remote)
        content = {"url": url, "file": file.name, "size": file.stat().st_size, "version": remote.version}
        write_json_atomic(known, content)
        if copy is not None and copy != file:
            copy.unlink(missing_ok=True)
        return file


def _same(earlier: dict[str, Any], remote: _Remote) -> bool:
    same_size = remote.size is None or earlier["size"] == remote.size
    return same_size and remote.version is not None and earlier["version"] == remote.version


def _ask(url: str) -> _Remote:
    """Return the size and version of a file.

    Raises:
        FileNotFoundError: There is no such file, or the server does not answer.
    """
    import datasets
    import fsspec

    if datasets.config.HF_HUB_OFFLINE:
        raise FileNotFoundError(f"{url}: HF_HUB_OFFLINE forbids asking for it") from ConnectionError("offline")
    system = fsspec.filesystem("http", client_kwargs={"trust_env": True}, skip_instance_cache=True)
    found = system.info(url)
    return _Remote(found.get("size"), found.get("ETag"), found.get("Last-Modified"))


def _is_unreachable(error: BaseException) -> bool:
    """Whether no server answered; an answer that the file does not exist counts as one."""
    from aiohttp import ClientResponseError

    return not isinstance(error.__cause__, ClientResponseError)


def _download(url: str, place: Path, remote: _Remote) -> tuple[Path, _Remote]:
    """Return the downloaded file, and the server's information on its version."""
    from huggingface_hub.file_download import http_get

    version = hashlib.sha256(f"{remote.version} {remote.size}".encode()).hexdigest()[:16]
    unfinished = place / f".{version}.unfinished"
    if remote.version is None:  # the unfinished file may belong to another version
        unfinished.unlink(missing_ok=True)
    headers = {"Accept-Encoding": "identity"}
    strong = remote.etag is not None and not remote.etag.startswith("W/")
    if strong or remote.modified is not None:
        headers["If-Range"] = str(remote.etag if strong else remote.modified)
    tries = 0
    while True:
        unfinished.touch()
        before = unfinished.stat().st_size
        if remote.size is not None and before > remote.size:
            unfinished.write_bytes(b"")
            before = 0
        try:
            with unfinished.open("r+b") as stream:
                stream.seek(0, 2)
                http_get(url, stream, resume_size=before, headers=headers, expected_size=remote.size)
            break
        except Exception as error:  # the HTTP library's error; its class differs between versions
            tries = 0 if unfinished.stat().st_size > before else tries + 1
            if tries >= _MOST_TRIES or not _is_passing(error):
                raise
            if remote.size is not None and unfinished.stat().st_size >= remote.size:
                unfinished.unlink()  # complete, but of another size: the file may have changed during the download
                if (now := _ask(url)) == remote:
                    raise
                return _download(url, place, now)
    # The name keeps its ending, which tells compressed files. The version in it keeps a file that others still read.
    file = place / f"{version}-{Path(urlsplit(url).path).name or 'file'}"
    unfinished.replace(file)
    return file, remote


def _is_passing(error: Exception) -> bool:
    """Whether another attempt may succeed."""
    from huggingface_hub.errors import HfHubHTTPError

    return not isinstance(error, HfHubHTTPError) and getattr(error, "errno", None) is None
