"""``blockyard key …``: API keys of the server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click

from ui.formats import age
from ui.terminal import Group, Terminal, pass_terminal

if TYPE_CHECKING:
    from zoo.store.protocols import ApiKey

SCOPES = ["read", "infer", "submit", "write", "admin"]


@click.group(cls=Group)
def key() -> None:
    """API keys."""


@key.command("create")
@click.argument("name")
@click.option("--owner", help="Whose jobs the key sees.  [default: NAME]")
@click.option(
    "--scope", "scopes", multiple=True, type=click.Choice(SCOPES), help="Repeat.  [default: read]"
)
@click.option("--days", type=click.IntRange(1), help="Expire after this many days.")
@click.option(
    "--share/--no-share",
    default=None,
    help="Whether the owner's jobs take evaluations from others and give theirs."
    "  [default: as it is, at first yes]",
)
@pass_terminal
def key_create(
    terminal: Terminal,
    name: str,
    owner: str | None,
    scopes: tuple[str, ...],
    days: int | None,
    share: bool | None,
) -> None:
    """Make an API key; its secret is printed once and kept nowhere."""
    until = datetime.now(UTC) + timedelta(days=days) if days else None
    with terminal.zoo() as zoo:
        made, secret = zoo.create_key(
            name, owner=owner or name, scopes=scopes or ("read",), expires_at=until, shares=share
        )
    if terminal.json:
        terminal.answer({**made.to_json(), "secret": secret})
        return
    click.echo(secret)
    terminal.say(f"key {made.id}, scopes {', '.join(made.scopes)}; it is not shown again")


@key.command("update")
@click.argument("key_id", metavar="KEY")
@click.option(
    "--share/--no-share",
    required=True,
    help="Whether the owner's jobs take evaluations from others and give theirs.",
)
@pass_terminal
def key_update(terminal: Terminal, key_id: str, share: bool) -> None:
    """Let a key's owner share evaluations, or not: all its keys, jobs from now on."""
    with terminal.zoo() as zoo:
        found = zoo.update_key(key_id, shares=share)
    says = "shares evaluations" if found.shares else "shares no evaluations"
    terminal.facts({found.owner: says}, value=found.to_json())


@key.command("list")
@pass_terminal
def key_list(terminal: Terminal) -> None:
    """List API keys, without their secrets."""
    with terminal.zoo() as zoo:
        found = zoo.keys()
    now = datetime.now(UTC)
    rows = [
        (
            item.id,
            item.name,
            item.owner,
            " ".join(item.scopes),
            "yes" if item.shares else "no",
            age(item.created_at, now),
            _standing(item, now),
        )
        for item in found
    ]
    columns = ("KEY", "NAME", "OWNER", "SCOPES", "SHARES", "CREATED", "STANDING")
    terminal.table(columns, rows, values=[item.to_json() for item in found])


@key.command("revoke")
@click.argument("key_id", metavar="KEY")
@pass_terminal
def key_revoke(terminal: Terminal, key_id: str) -> None:
    """Revoke an API key for good."""
    with terminal.zoo() as zoo:
        zoo.revoke_key(key_id)
    terminal.facts({key_id: "revoked"}, value={"id": key_id, "revoked": True})


def _standing(item: ApiKey, now: datetime) -> str:
    if item.revoked_at:
        return "revoked"
    if item.expires_at:
        return "expired" if item.expires_at <= now else f"until {item.expires_at:%Y-%m-%d}"
    return "valid"
