"""Fixtures of a test module: one zoo, one embedded worker and its trainer for all its tests.

A module takes them by ``url, store, worker = embedded.FIXTURES``; its tests share the trainer,
which takes seconds to start, and so differ in their seeds.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import toys
from workers.embedded import EmbeddedWorker
from zoo.store import open_store
from zoo.store.protocols import Store


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('zoo')}/zoo.db"


@pytest.fixture(scope="module")
def store(url: str) -> Iterator[Store]:
    toys.install()
    opened = open_store(url)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def worker(store: Store) -> Iterator[EmbeddedWorker]:
    with toys.working(store) as worker:
        yield worker


FIXTURES = url, store, worker
