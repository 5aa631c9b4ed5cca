"""The file store when disks fill up, bytes rot and writers die."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from zoo.canonical import digest as digest_of
from zoo.errors import (
    CorruptArtifactError,
    EnvironmentUnfitError,
    NotFoundError,
    StorageFullError,
)
from zoo.store.files import FileStore

DATA = bytes(range(256)) * 4


def paths(root: Path) -> set[str]:
    return {path.name for path in root.rglob("*") if path.is_file() and path.name != ".lock"}


def stored(root: Path, digest: str) -> Path:
    (path,) = root.rglob(digest)
    return path


@pytest.mark.parametrize("position", [0, 1, 511, len(DATA) - 1])
def test_a_flipped_byte_is_never_served(tmp_path: Path, position: int) -> None:
    files = FileStore(tmp_path)
    digest, sound = files.put(DATA), files.put(b"sound")
    damaged = bytearray(DATA)
    damaged[position] ^= 1
    stored(tmp_path, digest).write_bytes(damaged)
    with pytest.raises(CorruptArtifactError, match=digest):
        files.get(digest)
    assert files.verify() == [digest]
    assert files.get(sound) == b"sound"


@pytest.mark.parametrize("content", [b"", DATA[:-1], DATA + b"x"])
def test_a_file_of_another_length_is_never_served(tmp_path: Path, content: bytes) -> None:
    files = FileStore(tmp_path)
    digest = files.put(DATA)
    stored(tmp_path, digest).write_bytes(content)
    with pytest.raises(CorruptArtifactError):
        files.get(digest)


def test_putting_the_content_again_repairs_it(tmp_path: Path) -> None:
    files = FileStore(tmp_path)
    digest = files.put(DATA)
    stored(tmp_path, digest).write_bytes(b"rot")
    assert files.put(DATA) == digest
    assert files.get(digest) == DATA
    assert files.verify() == []


def test_a_file_limit_leaves_no_half_file(tmp_path: Path) -> None:
    """A real failing write: the kernel stops the process at 4096 bytes a file."""
    code = """
        import resource, sys
        from pathlib import Path
        from zoo.errors import StorageFullError
        from zoo.store.files import FileStore

        files = FileStore(Path(sys.argv[1]))
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        kept = files.put(b"small")
        try:
            files.put(b"x" * 5000)
        except StorageFullError as error:
            assert "5000 bytes" in str(error) and "free some space" in str(error)
            assert list(files.digests()) == [kept]
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            files.put(b"x" * 5000)
            print("recovered")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.stdout == "recovered\n", done.stderr
    assert paths(tmp_path) == {digest_of(b"small"), digest_of(b"x" * 5000)}


@pytest.mark.parametrize("call", ["write", "fsync", "open", "rename"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_at_any_step_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    files = FileStore(tmp_path)
    kept = files.put(b"before")

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        if call == "rename":
            patch.setattr(Path, "rename", fail)
        elif call == "open":
            real = os.open
            patch.setattr(
                os,
                "open",
                lambda path, flags, *a: fail() if flags & os.O_EXCL else real(path, flags, *a),
            )
        else:
            patch.setattr(os, call, fail)
        with pytest.raises(StorageFullError):
            files.put(DATA)
    assert paths(tmp_path) == {kept}
    assert files.get(files.put(DATA)) == DATA


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EnvironmentUnfitError, match="file"):
        FileStore(tmp_path / "file")
    files = FileStore(tmp_path / "root")
    digest = digest_of(DATA)
    (tmp_path / "root" / digest[:2]).write_text("in the way")
    with pytest.raises(EnvironmentUnfitError, match="1024 bytes cannot be written"):
        files.put(DATA)
    assert paths(tmp_path / "root" / "unfinished") == set()
    with pytest.raises(EnvironmentUnfitError, match=f"{digest} cannot be read"):
        files.get(digest)


@pytest.mark.parametrize("call", ["open", "utime", "unlink", "stat"])
def test_what_the_system_refuses_is_said_in_our_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    files = FileStore(tmp_path / "files")
    digest = files.put(b"content")
    later = datetime(2100, 1, 1, tzinfo=UTC)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    acts: dict[str, list[Callable[[], object]]] = {
        "open": [lambda: files.put(b"other"), lambda: files.delete_old(digest, later)],
        "utime": [lambda: files.touch(digest)],
        "unlink": [lambda: files.delete(digest), lambda: files.delete_old(digest, later)],
        "stat": [lambda: files.size(digest), lambda: files.changed_before(digest, later)],
    }
    owner = Path if call in ("unlink", "stat") else os
    with monkeypatch.context() as patched:
        patched.setattr(owner, call, refuse)
        for act in acts[call]:
            with pytest.raises(EnvironmentUnfitError, match="Input/output error"):
                act()
    assert files.get(digest) == b"content"


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = FileStore(tmp_path)
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: real(handle, bytes(data[:100])))
    assert files.get(files.put(DATA)) == DATA


def test_what_a_killed_writer_left_is_ignored_and_collected_when_old(tmp_path: Path) -> None:
    """The writer is killed after half of its bytes."""
    code = """
        import os, signal, sys
        from pathlib import Path
        from zoo.store.files import FileStore

        files = FileStore(Path(sys.argv[1]))
        real = os.write
        def write(handle, data):
            real(handle, data[:100])
            os.kill(os.getpid(), signal.SIGKILL)
        os.write = write
        files.put(b"x" * 1000)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path)])
    assert done.returncode == -9
    files = FileStore(tmp_path)
    assert len(paths(tmp_path)) == 1
    assert list(files.digests()) == []
    assert files.verify() == []
    now = datetime.now(UTC)
    assert files.delete_unfinished(now - timedelta(hours=1)) == 0
    assert files.delete_unfinished(now + timedelta(hours=1)) == 1
    assert paths(tmp_path) == set()


def test_a_touched_file_is_young_again(tmp_path: Path) -> None:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    files = FileStore(tmp_path, now=lambda: moment)
    digest = files.put(DATA)
    moment += timedelta(hours=2)
    assert files.changed_before(digest, moment - timedelta(hours=1))
    files.touch(digest)
    assert not files.delete_old(digest, moment - timedelta(hours=1))
    assert files.get(digest) == DATA
    assert files.delete_old(digest, moment + timedelta(seconds=1))
    assert not files.delete_old(digest, moment + timedelta(seconds=1))
    with pytest.raises(NotFoundError):
        files.touch(digest)


def test_foreign_files_in_the_folder_are_not_content(tmp_path: Path) -> None:
    files = FileStore(tmp_path)
    digest = files.put(DATA)
    (tmp_path / digest[:2] / "note.txt").write_text("mine")
    (tmp_path / "zz").mkdir()
    (tmp_path / "zz" / ("z" * 64)).write_text("mine")
    assert list(files.digests()) == [digest]


def test_many_writers_and_readers_never_see_half_a_file(tmp_path: Path) -> None:
    files = FileStore(tmp_path)
    contents = [bytes([n]) * 50_000 for n in range(8)]

    def write_and_read(turn: int) -> bool:
        content = contents[turn % 8]
        return FileStore(tmp_path).get(files.put(content)) == content

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(write_and_read, range(64)))
    assert len(paths(tmp_path)) == 8


def test_no_file_handle_is_leaked(tmp_path: Path) -> None:
    files = FileStore(tmp_path)
    files.put(b"warm up")
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    for number in range(min(50, limit)):
        files.get(files.put(b"%d" % number))
    after = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0
    assert after <= before
