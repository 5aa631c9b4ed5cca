"""What every page works with: the connection, links to the other pages, and small parts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ParamSpec

import streamlit as st

from ui.catalogue import Entry, catalogue
from ui.connection import Connection
from zoo.errors import BlockyardError
from zoo.names import is_loopback

if TYPE_CHECKING:
    from streamlit.navigation.page import Page

    from zoo.client import Zoo
    from zoo.jobs import Job

STATE_COLOURS: Mapping[str, Any] = {
    "queued": "gray",
    "running": "blue",
    "paused": "orange",
    "succeeded": "green",
    "failed": "red",
    "cancelled": "gray",
}
STATE_ICONS = {
    "queued": ":material/schedule:",
    "running": ":material/play_arrow:",
    "paused": ":material/pause:",
    "succeeded": ":material/check:",
    "failed": ":material/error:",
    "cancelled": ":material/close:",
}


Arguments = ParamSpec("Arguments")

LOGO = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 150 28">
<rect x="1" y="15" width="12" height="12" rx="2" fill="#0072b2"/>
<rect x="15" y="15" width="12" height="12" rx="2" fill="#56b4e9"/>
<rect x="8" y="1" width="12" height="12" rx="2" fill="#e69f00"/>
<text x="38" y="21" font-family="sans-serif" font-size="19" font-weight="600"
 fill="#6b7785">Blockyard</text></svg>"""


def guarded(draw: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Show a deliberate error of ``draw`` as one line in its place."""

    @functools.wraps(draw)
    def drawn(*arguments: Arguments.args, **settings: Arguments.kwargs) -> None:
        try:
            draw(*arguments, **settings)
        except BlockyardError as error:
            st.error(str(error), icon=":material/error:")

    return drawn


@st.cache_resource(show_spinner="Connecting…")
def connect(connection: Connection) -> Zoo:
    """Open one connection for all tabs; stores and servers are safe to use from threads."""
    return connection.open()


def admitted(connection: Connection, host: str | None) -> Connection:
    """Return what a visitor works with: beyond this machine, the API key that they give.

    The key that the pages were started with serves visitors from this machine alone. The
    server decides what a key may; it is kept in the session and nowhere else.

    Args:
        connection: What the pages were started with.
        host: Address that they listen on; None for every address.
    """
    host = host or "0.0.0.0"
    if is_loopback(host):
        return connection
    try:
        connection.check_pages(host)
    except BlockyardError as error:
        st.error(str(error), icon=":material/error:")
        st.stop()
    if "api_key" not in st.session_state:
        _sign_in(connection)
        st.stop()
    if st.sidebar.button("Sign out", icon=":material/logout:"):
        st.session_state.clear()
        st.rerun()
    return replace(connection, api_key=st.session_state["api_key"])


def _sign_in(connection: Connection) -> None:
    """Ask for an API key and keep it once the server has taken it."""
    with st.form("sign-in"):
        st.subheader("Sign in", anchor=False)
        given = st.text_input("API key", type="password", help="blockyard key create NAME").strip()
        wanted = st.form_submit_button("Sign in", type="primary")
    if not wanted:
        return
    if not given:
        st.error("Give an API key.", icon=":material/error:")
        return
    try:
        with replace(connection, api_key=given).open() as zoo:
            zoo.workers()
    except BlockyardError as error:
        st.error(str(error), icon=":material/error:")
        return
    st.session_state["api_key"] = given
    st.rerun()


@dataclass(frozen=True, kw_only=True)
class Site:
    """The connection and the pages, by name."""

    connection: Connection
    pages: dict[str, Page] = field(default_factory=dict)

    @property
    def zoo(self) -> Zoo:
        return connect(self.connection)

    def link(self, page: str, label: str, *, icon: str | None = None, **query: str) -> None:
        """Draw a link to another page that keeps its place in its address."""
        st.page_link(self.pages[page], label=label, icon=icon, query_params=query)

    def go(self, page: str, **query: str) -> None:
        """Leave for another page."""
        st.switch_page(self.pages[page], query_params=query)

    def job_link(self, job: Job, *, icon: str | None = None) -> None:
        """Draw a link to a job's page under its name, or its short id."""
        self.link("job", job_title(job), icon=icon, job=job.id)

    def catalogue(self) -> Mapping[str, Sequence[Entry]]:
        """Return what can be searched, asked at most once a minute."""
        return known_catalogue(self.connection)


@st.cache_data(ttl=60, show_spinner="Asking what can be searched…")
def known_catalogue(connection: Connection) -> Mapping[str, Sequence[Entry]]:
    """Return the catalogue of the workers behind a connection."""
    return catalogue(connect(connection))


def job_title(job: Job) -> str:
    """Return what a job is called on the pages."""
    return job.name or job.id[:12]


def state_badge(state: str) -> None:
    """Show a job's state as a coloured badge."""
    st.badge(state, color=STATE_COLOURS[state], icon=STATE_ICONS[state])


def choose(
    label: str, options: Sequence[str], *, key: str, default: str | None = None, **settings: Any
) -> str:
    """Draw a select box whose choice stands in the page's address."""
    index = options.index(default) if default in options else 0
    chosen = st.selectbox(label, options, index=index, key=key, bind="query-params", **settings)
    return str(chosen)
