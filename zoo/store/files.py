"""Bytes under the name of their sha256, in a folder: no caller ever names a path."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from zoo.canonical import digest as digest_of
from zoo.errors import CorruptArtifactError, InvalidInputError, NotFoundError
from zoo.store.clock import Clock, utc_now
from zoo.store.folders import make_folder, unusable

_DIGEST = re.compile(r"[0-9a-f]{64}")
_UNFINISHED = "unfinished"


class FileStore:
    """Content-addressed files, one per content, under ``root/ab/abcd…``.

    A file appears whole or not at all: it is written under ``root/unfinished``, synced,
    and renamed. A lock file orders writers, who share it, against garbage collection,
    which takes it alone for the instant of each deletion, so that a file that somebody
    puts again is never deleted as unused.
    """

    def __init__(self, root: Path, *, now: Clock = utc_now) -> None:
        self.root = root
        self._now = now
        self._unfinished = root / _UNFINISHED
        make_folder(self._unfinished)

    def put(self, data: bytes) -> str:
        """Keep ``data`` and return its digest; writing equal content twice keeps one file.

        A file that is there already is compared, and replaced if it was damaged.

        Raises:
            StorageFullError: The disk is full; nothing half-written remains.
            EnvironmentUnfitError: The folder cannot be written.
        """
        digest = digest_of(data)
        path = self._path(digest)
        with self._locked(fcntl.LOCK_SH):
            if not self._holds(path, data):
                self._write(path, data)
            self._stamp(path)
        return digest

    def get(self, digest: str) -> bytes:
        """Return the content, verified against ``digest``.

        Raises:
            InvalidInputError: ``digest`` is not 64 hex digits.
            NotFoundError: There is no such file.
            CorruptArtifactError: The bytes changed on disk; they are not returned.
            EnvironmentUnfitError: The disk cannot be read.
        """
        try:
            data = self._path(digest).read_bytes()
        except FileNotFoundError as error:
            raise _missing(digest) from error
        except OSError as error:
            raise unusable(error, f"file {digest} cannot be read") from error
        if digest_of(data) != digest:
            raise CorruptArtifactError(
                f"file {digest} is damaged: its content has digest {digest_of(data)}; "
                "put the original again or delete what refers to it"
            )
        return data

    def has(self, digest: str) -> bool:
        return self._path(digest).is_file()

    def size(self, digest: str) -> int:
        path = self._path(digest)
        with _translated(digest, "cannot be read"):
            return path.stat().st_size

    def delete(self, digest: str) -> None:
        path = self._path(digest)
        with _translated(digest, "cannot be deleted"):
            path.unlink()

    def digests(self) -> Iterator[str]:
        try:
            for shard in sorted(self.root.glob("[0-9a-f][0-9a-f]")):
                for path in sorted(shard.iterdir()):
                    if _DIGEST.fullmatch(path.name):
                        yield path.name
        except OSError as error:
            raise unusable(error, f"folder {self.root} cannot be listed") from error

    def verify(self) -> list[str]:
        """Read everything and return the digests whose bytes are wrong."""
        wrong = []
        for digest in self.digests():
            try:
                self.get(digest)
            except CorruptArtifactError:
                wrong.append(digest)
            except NotFoundError:
                continue  # deleted while this ran
        return wrong

    def touch(self, digest: str) -> None:
        """Make a file young again, so that garbage collection waits for what refers to it.

        Raises:
            NotFoundError: There is no such file.
        """
        with self._locked(fcntl.LOCK_SH):
            self._stamp(self._path(digest))

    def changed_before(self, digest: str, moment: datetime) -> bool:
        """Say whether the file was last put or touched before ``moment``."""
        try:
            return self._path(digest).stat().st_mtime < moment.timestamp()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise unusable(error, f"file {digest} cannot be read") from error

    def delete_old(self, digest: str, moment: datetime) -> bool:
        """Delete the file unless it was put or touched since ``moment``; say whether it was."""
        with self._locked(fcntl.LOCK_EX):
            if not self.changed_before(digest, moment):
                return False
            self.delete(digest)
            return True

    def delete_unfinished(self, moment: datetime) -> int:
        """Delete what writers that died before ``moment`` left behind; return the number."""
        count = 0
        try:
            for path in self._unfinished.iterdir():
                with contextlib.suppress(FileNotFoundError):  # its writer finished just now
                    if path.stat().st_mtime < moment.timestamp():
                        path.unlink()
                        count += 1
        except OSError as error:
            raise unusable(error, f"folder {self._unfinished} cannot be cleaned") from error
        return count

    def _path(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise InvalidInputError(f"{digest!r:.100} is not a sha256 digest of 64 hex digits")
        return self.root / digest[:2] / digest

    def _stamp(self, path: Path) -> None:
        moment = self._now().timestamp()
        with _translated(path.name, "cannot be stamped"):
            os.utime(path, (moment, moment))

    def _holds(self, path: Path, data: bytes) -> bool:
        try:
            return path.is_file() and path.read_bytes() == data
        except OSError as error:
            raise unusable(error, f"file {path.name} cannot be read") from error

    def _write(self, path: Path, data: bytes) -> None:
        unfinished = self._unfinished / uuid.uuid4().hex
        try:
            _write_synced(unfinished, data)
            if not path.parent.is_dir():
                path.parent.mkdir(exist_ok=True)
                _sync_folder(self.root)
            unfinished.rename(path)
            _sync_folder(path.parent)
        except OSError as error:
            what = f"{len(data)} bytes cannot be written under {self.root}"
            raise unusable(error, what) from error
        finally:
            unfinished.unlink(missing_ok=True)

    @contextmanager
    def _locked(self, mode: int) -> Iterator[None]:
        lock = self.root / ".lock"
        try:
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise unusable(error, f"the lock file {lock} cannot be opened") from error
        try:
            try:
                fcntl.flock(handle, mode)
            except OSError as error:
                raise unusable(error, f"the lock file {lock} cannot be locked") from error
            yield
        finally:
            os.close(handle)


@contextmanager
def _translated(digest: str, what: str) -> Iterator[None]:
    """Say in our words that a file is missing or that the disk refuses."""
    try:
        yield
    except FileNotFoundError as error:
        raise _missing(digest) from error
    except OSError as error:
        raise unusable(error, f"file {digest} {what}") from error


def _missing(digest: str) -> NotFoundError:
    return NotFoundError(f"file {digest} is not in the store; put it first")


def _write_synced(path: Path, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(handle, rest) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
