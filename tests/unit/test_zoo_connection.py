"""What the HTTP side of the SDK says when something else than a server of ours answers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from zoo import Zoo
from zoo.errors import EnvironmentUnfitError, NotFoundError

PAGE = b"<html><body>Welcome to nginx</body></html>"


class Website(BaseHTTPRequestHandler):
    """Answers everything with a page, and what it does not know with a page and 404."""

    def do_GET(self) -> None:
        self.send_response(404 if "absent" in self.path else 200)
        self.send_header("Content-Length", str(len(PAGE)))
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""


@pytest.fixture
def website() -> Iterator[Zoo]:
    with HTTPServer(("127.0.0.1", 0), Website) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        with Zoo(f"http://127.0.0.1:{server.server_port}") as zoo:
            yield zoo
        server.shutdown()
        thread.join()


def test_a_page_instead_of_json_is_said_to_be_no_server(website: Zoo) -> None:
    with pytest.raises(EnvironmentUnfitError, match="no Blockyard server; check the address"):
        website.workers()


def test_a_page_with_404_is_not_printed(website: Zoo) -> None:
    with pytest.raises(NotFoundError, match="404 Not Found to GET /v1/jobs/absent") as caught:
        website.job("absent")
    assert "html" not in str(caught.value)
    assert website.url in str(caught.value)
