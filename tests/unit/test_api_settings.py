"""What a server refuses to be told."""

from __future__ import annotations

import pytest

from serving.api import ApiSettings
from zoo.errors import InvalidInputError


def test_every_wrong_setting_is_named() -> None:
    with pytest.raises(InvalidInputError) as caught:
        ApiSettings(port=70000, deadline_s=-1, colour="red")
    for said in ("port", "70000", "deadline_s", "-1", "colour", "red"):
        assert said in str(caught.value)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False)],
)
def test_only_a_loopback_address_is_this_machine_alone(host: str, loopback: bool) -> None:
    assert ApiSettings(host=host).loopback is loopback
