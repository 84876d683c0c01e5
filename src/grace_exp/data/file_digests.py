"""Digests of files, stored and reused while size, times and inode stay the same."""

import hashlib
import json
from pathlib import Path

from grace_exp.tracking.atomic import atomic_path


def file_digest(file: Path, cache_dir: Path) -> str:
    """Return the SHA-256 digest of a file, 64 hex digits.

    Reading a file of some gigabytes takes many seconds. The digest is therefore stored with the file's size, times of
    change (nanoseconds) and inode; the file is read again if one of them differs.

    Args:
        file: The file.
        cache_dir: Its folder `digests` holds the stored digests.
    """
    status = file.stat()
    identity = [str(file.resolve()), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    memory = cache_dir / "digests" / f"{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]}.txt"
    if memory.is_file() and len(known := memory.read_text(encoding="ascii")) == 64:
        return known
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    memory.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(memory) as unfinished:
        unfinished.write_text(digest, encoding="ascii")
    return digest
