"""What every ``KeyStore`` promises."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest

from zoo.errors import InvalidInputError, NotFoundError, UnauthenticatedError, UnknownNameError
from zoo.jobs import JobKind


class TestKeys:
    implementations = ("sqlite", "postgres")

    def test_a_secret_proves_its_key(self, make_store: Any, clock: Any) -> None:
        keys = make_store(now=clock).keys
        key, secret = keys.create("laptop", owner="ann", scopes=["read", "submit"])
        assert re.fullmatch(rf"by_{key.id}_[A-Za-z0-9_-]{{43}}", secret)
        assert keys.authenticate(secret) == key
        assert (key.name, key.owner, key.scopes) == ("laptop", "ann", ("read", "submit"))
        assert keys.keys() == (key,)

    def test_only_the_exact_secret_is_accepted(self, make_store: Any) -> None:
        keys = make_store().keys
        key, secret = keys.create("a", owner="ann", scopes=["read"])
        other = "A" if secret[-1] != "A" else "B"
        for wrong in ("", "by_", secret[:-1], secret + "x", secret[:-1] + other, f"by_{key.id}_"):
            with pytest.raises(UnauthenticatedError):
                keys.authenticate(wrong)
        with pytest.raises(UnauthenticatedError):
            keys.authenticate(f"by_{'0' * 16}_{secret[-43:]}")

    def test_a_revoked_key_is_refused_at_once_and_for_good(self, make_store: Any) -> None:
        keys = make_store().keys
        key, secret = keys.create("a", owner="ann", scopes=["read"])
        keys.revoke(key.id)
        (revoked,) = keys.keys()
        keys.revoke(key.id)
        assert keys.keys() == (revoked,)
        with pytest.raises(UnauthenticatedError):
            keys.authenticate(secret)
        with pytest.raises(NotFoundError, match="nothing"):
            keys.revoke("nothing")

    def test_a_key_expires(self, make_store: Any, clock: Any) -> None:
        keys = make_store(now=clock).keys
        expires = clock.moment + timedelta(seconds=10)
        _, secret = keys.create("a", owner="ann", scopes=["read"], expires_at=expires)
        clock.advance(9)
        keys.authenticate(secret)
        clock.advance(1)
        with pytest.raises(UnauthenticatedError):
            keys.authenticate(secret)

    def test_sharing_is_the_owner_s_and_holds_for_all_its_keys(self, make_store: Any) -> None:
        store = make_store()
        keys = store.keys
        first, secret = keys.create("a", owner="ann", scopes=["read"])
        other, _ = keys.create("b", owner="bob", scopes=["read"], shares=False)
        assert (first.shares, other.shares) == (True, False)
        before = store.jobs.submit(JobKind.SEARCH, {}, owner="ann")
        assert not keys.update(first.id, shares=False).shares
        second, _ = keys.create("c", owner="ann", scopes=["read"])
        assert not second.shares
        assert not keys.authenticate(secret).shares
        listed = keys.keys()
        assert {key.shares for key in listed} == {False}
        after = store.jobs.submit(JobKind.SEARCH, {}, owner="ann")
        # What a job began with it keeps.
        assert (store.jobs.job(before.id).shares, after.shares) == (True, False)
        keys.create("d", owner="ann", scopes=["read"], shares=True)
        listed = keys.keys()
        assert [key.shares for key in listed if key.owner == "bob"] == [False]
        assert store.jobs.submit(JobKind.SEARCH, {}, owner="ann").shares
        assert not store.jobs.submit(JobKind.SEARCH, {}, owner="bob").shares
        assert store.jobs.submit(JobKind.SEARCH, {}, owner="carol").shares
        with pytest.raises(NotFoundError, match="nothing"):
            keys.update("nothing", shares=True)

    def test_a_key_without_sense_is_refused(self, make_store: Any) -> None:
        keys = make_store().keys
        with pytest.raises(UnknownNameError, match="fly"):
            keys.create("a", owner="ann", scopes=["fly"])
        for name, owner, scopes in (("", "ann", ["read"]), ("a", "", ["read"]), ("a", "ann", [])):
            with pytest.raises(InvalidInputError):
                keys.create(name, owner=owner, scopes=scopes)
