"""Names as people give them: which ones an alias may have, and which hosts are this machine."""

from __future__ import annotations

import ipaddress
import re

from zoo.errors import InvalidInputError

ID_PREFIX = re.compile(r"[0-9a-f]{8,64}")
"""What is taken for an id or the beginning of one."""

_ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def check_alias(alias: str) -> None:
    """Raise unless ``alias`` is a usable name that no id could be mistaken for.

    Raises:
        InvalidInputError: It is not.
    """
    if not _ALIAS.fullmatch(alias) or ID_PREFIX.fullmatch(alias):
        raise InvalidInputError(
            f"{alias!r:.200} is no alias; use up to 128 letters, digits, '.', '_' or '-', "
            "not only hex digits"
        )


def is_loopback(host: str) -> bool:
    """Say whether ``host`` is a loopback address or the name of one."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
