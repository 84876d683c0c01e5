"""Several workers embed one corpus: each writes its files, a lost worker's are computed again, the order is kept."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from grace_exp.config.compose import compose_config
from grace_exp.encoder.encoder import GraceEncoder
from grace_exp.encoder.shards import Shards
from grace_exp.errors import ConfigError, DataError
from grace_exp.jobs import embed as embed_job
from grace_exp.jobs import run as run_job

COMMON = ["+experiment=demo_tiny", "hardware=cpu", "hardware.threads=1", "job=embed", "callbacks.progress=none"]
COMMON += ["rollout.max_tokens=4", "job.encode.cache_gib=0", "job.shard_rows=2"]


@pytest.fixture
def texts(tmp_path: Path) -> list[str]:
    texts = [f"text number {row}" for row in range(9)]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    return texts


def settings(tmp_path: Path, output: str, *overrides: str) -> list[str]:
    files = [f"job.input={tmp_path / 'texts.txt'}", f"job.output={tmp_path / output / 'v.parquet'}"]
    return [*COMMON, *files, f"cache_dir={tmp_path / 'cache'}", *overrides]


def embed(tmp_path: Path, output: str, *overrides: str) -> dict[str, float]:
    return run_job(compose_config(settings(tmp_path, output, *overrides), tmp_path / "run"))


def table(folder: Path) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(path) for path in sorted(folder.glob("v-*.parquet"))], ignore_index=True)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The texts of every call of `encode`."""
    calls: list[list[str]] = []
    encode = GraceEncoder.encode

    def recording(self: GraceEncoder, texts: list[str], *args: Any, **kwargs: Any) -> Any:
        calls.append(list(texts))
        return encode(self, texts, *args, **kwargs)

    monkeypatch.setattr(GraceEncoder, "encode", recording)
    return calls


def test_workers_share_the_files_and_together_write_what_one_command_writes(
    tmp_path: Path, texts: list[str], encoded: list[list[str]]
) -> None:
    embed(tmp_path, "one")
    encoded.clear()
    figures = [embed(tmp_path, "many", f"job.worker={number}/3") for number in (2, 0)]
    assert [figure["embed/texts"] for figure in figures] == [2, 4]
    assert not (tmp_path / "many" / "v.manifest.json").exists()  # not all files are there
    embed(tmp_path, "many", "job.worker=1/3")
    assert encoded == [texts[4:6], texts[0:2], texts[6:8], texts[2:4], texts[8:]]
    pd.testing.assert_frame_equal(table(tmp_path / "many"), table(tmp_path / "one"), check_exact=True)
    whole = [json.loads((tmp_path / name / "v.manifest.json").read_text()) for name in ("one", "many")]
    assert whole[0] == whole[1] and whole[0]["rows"] == [2, 2, 2, 2, 1]
    encoded.clear()
    embed(tmp_path, "many")  # one command knows what the workers did
    embed(tmp_path, "many", "job.worker=0/2")  # and so do workers of another number
    assert encoded == []


def test_a_lost_workers_files_are_done_again_and_no_others(
    tmp_path: Path, texts: list[str], encoded: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Shards.write

    def lost(self: Shards, number: int, *args: Any) -> None:
        if number == 3:
            raise KeyboardInterrupt
        write(self, number, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Shards, "write", lost)
        embed(tmp_path, "many", "job.worker=1/2")
    embed(tmp_path, "many", "job.worker=0/2")
    encoded.clear()
    embed(tmp_path, "many", "job.worker=1/2")
    assert encoded == [texts[6:8]]
    assert list(table(tmp_path / "many").text) == texts
    assert (tmp_path / "many" / "v.manifest.json").is_file()


def test_other_vectors_never_pass_for_these(tmp_path: Path, texts: list[str], encoded: list[list[str]]) -> None:
    other = "job.encode.normalize=true"
    for number in (0, 1):
        embed(tmp_path, "many", f"job.worker={number}/2")
    embed(tmp_path, "many", "job.worker=0/2", other)  # writes over files 0, 2 and 4
    assert not (tmp_path / "many" / "v.manifest.json").exists()
    encoded.clear()
    embed(tmp_path, "many")
    assert len(encoded) == 5
    embed(tmp_path, "one")
    pd.testing.assert_frame_equal(table(tmp_path / "many"), table(tmp_path / "one"), check_exact=True)


def test_of_a_corpus_that_became_shorter_no_old_file_stays(tmp_path: Path, texts: list[str]) -> None:
    for number in (0, 1):
        embed(tmp_path, "many", f"job.worker={number}/2")
    (tmp_path / "many" / "v-model.parquet").write_text("somebody's own")
    (tmp_path / "texts.txt").write_text("\n".join(texts[2:7]))
    embed(tmp_path, "many", "job.worker=1/2")
    assert len(list((tmp_path / "many").glob("v-0*.parquet"))) == 5  # not before all that is new is there
    embed(tmp_path, "many", "job.worker=0/2")
    (tmp_path / "many" / "v-model.parquet").unlink()
    assert list(table(tmp_path / "many").text) == texts[2:7]
    assert len(list((tmp_path / "many").glob("*.rationales.jsonl"))) == 3


def test_who_finds_nothing_left_to_do_says_that_all_is_there(tmp_path: Path, texts: list[str]) -> None:
    for number in (0, 1):
        embed(tmp_path, "many", f"job.worker={number}/2")
    whole = tmp_path / "many" / "v.manifest.json"
    expected = whole.read_text()
    whole.unlink()  # as if both had been killed behind their last file
    embed(tmp_path, "many")
    assert whole.read_text() == expected


def test_a_corpus_edited_while_it_is_embedded_is_refused_and_done_again(
    tmp_path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    build = embed_job.build_encoder

    def slowly(*args: Any) -> GraceEncoder:
        (tmp_path / "texts.txt").write_text("\n".join([*texts[:8], "another"]))
        return build(*args)

    with monkeypatch.context() as patch, pytest.raises(DataError, match=r"job\.input=.*texts\.txt has changed since"):
        patch.setattr(embed_job, "build_encoder", slowly)
        embed(tmp_path, "many")
    assert not list((tmp_path / "many").glob("*.manifest*"))
    embed(tmp_path, "many")
    assert list(table(tmp_path / "many").text) == [*texts[:8], "another"]


def test_processes_of_which_one_is_killed(tmp_path: Path, texts: list[str]) -> None:
    def start(number: int) -> "subprocess.Popen[bytes]":
        run = f"hydra.run.dir={tmp_path / f'run-{number}-{time.monotonic_ns()}'}"
        command = [sys.executable, "-m", "grace_exp", *settings(tmp_path, "many", f"job.worker={number}/2"), run]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})

    workers = [start(0), start(1)]
    first = tmp_path / "many" / "v-00001.parquet"
    deadline = time.monotonic() + 120
    while not first.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    workers[1].send_signal(signal.SIGKILL)
    assert workers[0].wait() == 0
    workers[1].wait()
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "many").glob("v-*.parquet")}
    assert start(1).wait() == 0
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "many").glob("v-*.parquet")}
    assert list(table(tmp_path / "many").text) == texts
    kept = [name for name, moment in before.items() if after[name] == moment]
    assert {"v-00000.parquet", "v-00002.parquet", "v-00004.parquet"} <= set(kept)  # the other worker's stand
    embed(tmp_path, "one")
    pd.testing.assert_frame_equal(table(tmp_path / "many"), table(tmp_path / "one"), check_exact=True)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["job.worker=2/2"], "worker='2/2': i/n counts from 0, so i is less than n"),
        (["job.worker=0/2", "job.shard_rows=null"], "set job.shard_rows"),
        (["job.worker=0/0"], "worker='0/0': i/n counts from 0"),
    ],
)
def test_workers_that_cannot_be_are_refused(tmp_path: Path, overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace("/", r"\/")):
        compose_config(settings(tmp_path, "v", *overrides), tmp_path)
