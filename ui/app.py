"""The pages: ``streamlit run ui/app.py -- --url …``, or ``blockyard ui``.

All state lives behind the URL; what a reader is looking at stands in the page's
address, so that a reload or a second tab shows the same.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import streamlit as st

from ui.connection import DEFAULT_URL, Connection
from ui.views import assemble, browse, candidate, job, jobs, submit, system
from ui.website import LOGO, Site, admitted, guarded


def read_connection(arguments: list[str]) -> Connection:
    """Read where to connect to: options first, then the environment."""
    parser = argparse.ArgumentParser(prog="streamlit run ui/app.py --")
    parser.add_argument("--url", default=os.environ.get("BLOCKYARD_URL", DEFAULT_URL))
    parser.add_argument("--files", type=Path, default=os.environ.get("BLOCKYARD_FILES"))
    options = parser.parse_args(arguments)
    return Connection(
        url=options.url,
        files=Path(options.files) if options.files else None,
        api_key=os.environ.get("BLOCKYARD_API_KEY"),
    )


def main() -> None:
    """Draw the page that the address names."""
    st.set_page_config(page_title="Blockyard", page_icon=":material/grid_view:", layout="wide")
    st.logo(LOGO, size="large")
    site = Site(connection=admitted(read_connection(sys.argv[1:]), st.get_option("server.address")))

    def page(
        name: str, draw: Callable[[Site], None], title: str, icon: str, *, hidden: bool = False
    ) -> None:
        site.pages[name] = st.Page(
            partial(draw, site),
            title=title,
            icon=f":material/{icon}:",
            url_path=name,
            default=name == "jobs",
            visibility="hidden" if hidden else "visible",
        )

    page("jobs", jobs.draw, "Jobs", "list")
    page("submit", submit.draw, "New search", "add")
    page("job", job.draw, "Job", "insights", hidden=True)
    page("candidate", candidate.draw, "Candidate", "deployed_code", hidden=True)
    page("zoo", browse.draw, "Zoo", "widgets")
    page("chains", assemble.draw, "Chains", "link")
    page("system", system.draw, "Workers", "memory")
    guarded(st.navigation(list(site.pages.values())).run)()


if __name__ == "__main__":
    main()
