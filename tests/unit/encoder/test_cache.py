import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from grace_exp.encoder import cache as module
from grace_exp.encoder.cache import CacheError, RationaleCache

KB, MB = 1024, 1024**2


def entries(count: int, size: int = 10, start: int = 0) -> dict[bytes, bytes]:
    return {f"key {number}".encode(): os.urandom(size) for number in range(start, start + count)}


@pytest.fixture
def cache(tmp_path: Path) -> RationaleCache:
    return RationaleCache(tmp_path)


def test_what_was_put_is_found_by_this_and_the_next_process(cache: RationaleCache, tmp_path: Path) -> None:
    some = entries(1200)  # more than SQLite takes in one statement
    cache.put(some)
    assert cache.get([*some, b"another"]) == some
    cache.close()
    assert RationaleCache(tmp_path).get(list(some)) == some
    assert len(cache) == 1200


def test_a_later_put_replaces(cache: RationaleCache) -> None:
    cache.put({b"a": b"1"})
    cache.put({b"a": b"2", b"b": b""})
    assert cache.get([b"a", b"b"]) == {b"a": b"2", b"b": b""}


def test_nothing_is_on_disk_before_the_first_use(tmp_path: Path) -> None:
    RationaleCache(tmp_path / "folder").close()
    assert list(tmp_path.iterdir()) == []


def test_the_least_recently_used_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1e9]
    monkeypatch.setattr(module.time, "time", lambda: now[0])
    cache = RationaleCache(tmp_path, size_limit=2 * MB)
    first, second = entries(60, 10 * KB), entries(60, 10 * KB, start=60)
    cache.put(first)
    now[0] += 5000
    cache.put(second)
    now[0] += 5000
    assert len(cache.get(list(first))) == 60  # read again: now the newer
    now[0] += 5000
    for start in range(120, 200, 10):
        cache.put(entries(10, 10 * KB, start=start))
        assert cache.size() <= 2 * MB
    assert len(cache.get(list(first))) == 60
    assert len(cache.get(list(second))) < 60


def test_a_full_cache_keeps_what_was_just_put(tmp_path: Path) -> None:
    cache = RationaleCache(tmp_path, size_limit=MB)
    for start in range(0, 600, 20):
        some = entries(20, 10 * KB, start)
        cache.put(some)
        assert cache.get(list(some)) == some
    assert 0.5 * MB < cache.size() <= MB


def test_clear_gives_the_space_back(cache: RationaleCache) -> None:
    cache.put(entries(120, 100 * KB))
    assert cache.path.stat().st_size + Path(f"{cache.path}-wal").stat().st_size > 10 * MB
    assert cache.clear() > 10 * MB
    assert len(cache) == 0
    assert sum(file.stat().st_size for file in cache.path.parent.iterdir()) < 100 * KB
    cache.put({b"a": b"1"})
    assert cache.get([b"a"]) == {b"a": b"1"}


@pytest.mark.parametrize("damage", ["no_database", "torn_pages"])
def test_a_damaged_file_is_an_error_that_says_what_to_do(tmp_path: Path, damage: str) -> None:
    cache = RationaleCache(tmp_path)
    some = entries(500, 3 * KB)
    cache.put(some)
    with sqlite3.connect(cache.path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    cache.close()
    content = bytearray(cache.path.read_bytes())
    if damage == "no_database":
        content[:100] = b"x" * 100
    else:
        content[4096:] = os.urandom(len(content) - 4096)
    cache.path.write_bytes(content)
    with pytest.raises(CacheError, match=rf"{cache.path} is damaged .*: delete that file"):
        RationaleCache(tmp_path).get(list(some))


def test_a_place_that_cannot_be_written_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match=r"cannot be used .*: make room or choose another folder"):
        RationaleCache(tmp_path / "file" / "below").put({b"a": b"1"})


def test_a_failed_put_keeps_nothing_and_leaves_the_cache_usable(cache: RationaleCache) -> None:
    with pytest.raises(CacheError):
        cache.put({b"a": b"1", b"b": object()})  # type: ignore[dict-item]
    assert cache.get([b"a"]) == {}
    cache.put({b"a": b"1"})
    assert len(cache) == 1


WRITER = """
import sys
from grace_exp.encoder.cache import RationaleCache
cache, name = RationaleCache(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
for number in range(100):
    cache.put({f"{name} {number} {part}".encode(): bytes(5000) for part in range(4)} | {b"shared": bytes(5000)})
    assert cache.get([f"{name} {number} 3".encode()])
"""


def test_processes_write_at_the_same_time(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.communicate("go\n", timeout=60)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert len(RationaleCache(tmp_path)) == 801
