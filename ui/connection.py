"""Where the store or server is: read from options and the environment by a process entry."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from zoo.client import Zoo

DEFAULT_URL = "sqlite:///blockyard-data/zoo.db"
"""Without a URL everything lives in the folder ``blockyard-data`` of the working directory."""


@dataclass(frozen=True, kw_only=True)
class Connection:
    """A server or database, and what is needed to use it.

    ``url`` is ``http(s)://…`` for a server, else the URL of a database. ``files`` is the
    folder of weights (only with a database; beside an SQLite file by default), ``data``
    the folder of data sets for workers started from here.
    """

    url: str = DEFAULT_URL
    api_key: str | None = None
    files: Path | None = None
    data: Path | None = None

    @property
    def remote(self) -> bool:
        return self.url.startswith(("http://", "https://"))

    def check_pages(self, host: str) -> None:
        """Refuse pages on a database that visitors from elsewhere could use as they like.

        Raises:
            InvalidInputError: ``host`` is no loopback address and the URL no server's,
                which would ask every visitor for an API key.
        """
        from zoo.errors import InvalidInputError
        from zoo.names import is_loopback

        if not self.remote and not is_loopback(host):
            raise InvalidInputError(
                f"pages on {host} would give everybody who reaches them the database; "
                "give them a server, --url http://…, which asks for an API key, "
                "or keep them on --host 127.0.0.1"
            )

    def but(self, **changes: Any) -> Self:
        """Return a copy with the options that were given; None changes nothing."""
        return replace(self, **{name: value for name, value in changes.items() if value})

    def open(self) -> Zoo:
        """Connect; the folder of the default database is made on first use."""
        from zoo.client import Zoo

        self.make_folder()
        return Zoo(self.url, api_key=self.api_key, files=self.files, data=self.data)

    def make_folder(self) -> None:
        """Make the folder of the default database, so that a first command just works."""
        if self.url == DEFAULT_URL:
            Path(DEFAULT_URL.removeprefix("sqlite:///")).parent.mkdir(exist_ok=True)

    def database_environment(self) -> dict[str, str]:
        """Return what a process reads that works on the database itself.

        Every user of a machine can read command lines, so a URL with a password is in none.

        Raises:
            InvalidInputError: The URL is a server's.
        """
        from zoo.errors import InvalidInputError

        if self.remote:
            raise InvalidInputError(
                f"{self.url} is a server, and this command works on its database; "
                "run it where the database is, with --url sqlite:///… or postgresql+psycopg://…"
            )
        self.make_folder()
        files = {"BLOCKYARD_FILES": str(self.files)} if self.files else {}
        return {"BLOCKYARD_URL": self.url, **files}
