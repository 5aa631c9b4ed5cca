"""What every ``Files`` promises."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from zoo.canonical import digest as digest_of
from zoo.errors import InvalidInputError, NotFoundError

ABSENT = digest_of(b"never put")


class TestFiles:
    def test_content_comes_back_under_its_digest(self, make_store: Any) -> None:
        files = make_store().files
        digest = files.put(b"some weights")
        assert digest == digest_of(b"some weights")
        assert files.get(digest) == b"some weights"
        assert files.has(digest)
        assert files.size(digest) == len(b"some weights")
        assert list(files.digests()) == [digest]

    def test_empty_content_is_content(self, make_store: Any) -> None:
        files = make_store().files
        assert files.get(files.put(b"")) == b""

    def test_thirty_two_writers_of_one_content_leave_one_file(self, make_store: Any) -> None:
        files = make_store().files
        data = b"x" * 100_000
        with ThreadPoolExecutor(32) as pool:
            digests = set(pool.map(lambda _: files.put(data), range(32)))
        assert digests == {digest_of(data)}
        assert list(files.digests()) == [digest_of(data)]
        assert files.get(digest_of(data)) == data

    def test_an_unknown_digest_is_not_found(self, make_store: Any) -> None:
        files = make_store().files
        assert not files.has(ABSENT)
        for act in (files.get, files.size, files.delete):
            with pytest.raises(NotFoundError, match=ABSENT):
                act(ABSENT)

    @pytest.mark.parametrize(
        "name",
        ["../zoo.db", "", "a", "A" * 64, "/etc/passwd", "%2e%2e%2f", "a" * 63 + "\n", "a" * 65],
    )
    def test_only_a_digest_is_a_name(self, make_store: Any, name: str) -> None:
        files = make_store().files
        for act in (files.get, files.has, files.size, files.delete):
            with pytest.raises(InvalidInputError):
                act(name)

    def test_a_deleted_file_is_gone_and_can_come_back(self, make_store: Any) -> None:
        files = make_store().files
        digest = files.put(b"data")
        files.delete(digest)
        assert not files.has(digest)
        assert files.put(b"data") == digest
        assert files.get(digest) == b"data"

    def test_a_sound_store_verifies(self, make_store: Any) -> None:
        files = make_store().files
        files.put(b"one")
        files.put(b"two")
        assert files.verify() == []
