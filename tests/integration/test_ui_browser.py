"""The pages in a real headless Chromium, on a real server with a real worker."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from playwright.sync_api import TimeoutError as PlaywrightTimeoutError

from tests.integration.seeded_zoo import Seed, multiply, seed_store
from zoo.client import Zoo
from zoo.errors import NotFoundError
from zoo.jobs import JobState

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
ROOT = Path(__file__).parents[2]
START_S = 60.0
SLOW_MS = 30_000
expect.set_options(timeout=SLOW_MS)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not Path(CHROMIUM).exists() and "BLOCKYARD_REQUIRE_BROWSER" not in os.environ,
        reason="Chromium is not installed: apt-get install chromium",
    ),
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def process(module: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Run ``python -m module`` for as long as the block lasts."""
    running = subprocess.Popen(
        [sys.executable, "-m", module, *words],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield running
    finally:
        running.terminate()
        try:
            running.wait(30)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
        assert running.stdout is not None
        running.stdout.close()


def said(running: subprocess.Popen[str], pattern: str) -> str:
    """Read a process's output until a line fits; keep reading it afterwards."""
    assert running.stdout is not None
    timer = threading.Timer(START_S, running.kill)
    timer.start()
    lines = []
    for line in running.stdout:
        lines.append(line)
        if found := re.search(pattern, line):
            timer.cancel()
            threading.Thread(target=drain, args=(running.stdout,), daemon=True).start()
            return found.group()
    timer.cancel()
    raise AssertionError(f"{running.args!r} never said {pattern}: {''.join(lines)[-2000:]}")


def drain(stream: Any) -> None:
    try:
        stream.read()
    except ValueError:
        return  # closed at the end of the test


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory) -> Seed:
    return seed_store(tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="module")
def server(seed: Seed) -> Iterator[str]:
    words = ["serve", "--db", seed.url, "--port", "0", "--with-worker"]
    with process("workers", *words) as running:
        yield said(running, r"http://127\.0\.0\.1:\d+")


@contextmanager
def pages_of(url: str, *, address: str = "127.0.0.1") -> Iterator[str]:
    port = free_port()
    words = ["--server.port", str(port), "--server.headless", "true"]
    words += ["--server.address", address, "--server.fileWatcherType", "none"]
    with process("streamlit", "run", "ui/app.py", *words, "--", "--url", url):
        base = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + START_S
        while True:
            try:
                urllib.request.urlopen(f"{base}/_stcore/health", timeout=5).close()
                break
            except OSError:
                assert time.monotonic() < deadline, "the pages did not start"
                time.sleep(0.1)
        yield base


@pytest.fixture(scope="module")
def pages(server: str) -> Iterator[str]:
    with pages_of(server) as base:
        yield base


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
        )
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser, pages: str) -> Iterator[Callable[[str], Page]]:
    page = browser.new_page(viewport={"width": 1360, "height": 1000})
    page.set_default_timeout(SLOW_MS)

    def go(path: str) -> Page:
        page.goto(pages + path)
        settle(page)
        return page

    yield go
    broken = page.get_by_test_id("stException").all_inner_texts()
    page.close()
    assert not broken


def settle(page: Page) -> None:
    """Wait until the script of the page has run."""
    page.wait_for_selector('[data-testid="stApp"][data-test-script-state="notRunning"]')


def confirm(page: Page, action: str, answer: str) -> None:
    """Press a button and answer its question; a job that moves on meanwhile closes that."""
    for last in (False, False, True):
        page.get_by_role("button", name=action, exact=True).click()
        try:
            page.get_by_role("button", name=answer).click(timeout=SLOW_MS / 3)
            return
        except PlaywrightTimeoutError:
            if last:
                raise


def test_the_job_list_shows_state_progress_owner_and_savings(
    seed: Seed, visit: Callable[[str], Page]
) -> None:
    page = visit("/")
    for job in (seed.done, seed.running, seed.failed):
        expect(page.get_by_role("link", name=job.name)).to_be_visible()
    expect(page.get_by_text("9/24 · candidate 9")).to_be_visible()
    expect(page.get_by_text("absent.npz is not there")).to_be_visible()
    expect(page.get_by_text("Device time saved")).to_be_visible()


def test_a_job_opens_with_its_front_and_winner(seed: Seed, visit: Callable[[str], Page]) -> None:
    page = visit("/")
    page.get_by_role("link", name="first light").click()
    expect(page.locator(".js-plotly-plot")).to_be_visible()
    expect(page.get_by_text("random search, front")).to_be_visible()
    expect(page.locator(".shapelayer path").first).to_be_attached()
    assert seed.done.id in page.url
    page.get_by_role("link", name=f"Winner: chain {seed.chain.id[:12]}").click()
    expect(page.get_by_role("button", name="ONNX")).to_be_visible()


def test_points_marked_by_box_become_a_table(seed: Seed, visit: Callable[[str], Page]) -> None:
    page = visit(f"/job?job={seed.done.id}")
    plot = page.locator(".js-plotly-plot")
    expect(plot).to_be_visible()
    plot.hover()
    page.locator('.modebar-btn[data-title="Box Select"]').click()
    area = plot.locator(".nsewdrag").first.bounding_box()
    assert area is not None
    page.mouse.move(area["x"] + 5, area["y"] + 5)
    page.mouse.down()
    page.mouse.move(area["x"] + area["width"] - 5, area["y"] + area["height"] - 5, steps=8)
    page.mouse.up()
    expect(page.get_by_test_id("stDataFrame")).to_be_visible()


def test_axes_and_view_stand_in_the_address_and_survive_a_reload(
    seed: Seed, visit: Callable[[str], Page]
) -> None:
    page = visit(f"/job?job={seed.done.id}&x=FLOPs&view=Front")
    expect(page.locator(".js-plotly-plot .xtitle")).to_have_text("FLOPs")
    page.get_by_role("radio", name="Candidates").click()
    expect(page.get_by_test_id("stDataFrame")).to_be_visible()
    page.wait_for_url("**view=Candidates**")
    page.reload()
    expect(page.get_by_test_id("stDataFrame")).to_be_visible()
    expect(page.get_by_text("Failed candidates: 1")).to_be_visible()


def test_progress_and_log_are_shown(seed: Seed, visit: Callable[[str], Page]) -> None:
    page = visit(f"/job?job={seed.done.id}&view=Progress")
    expect(page.locator(".js-plotly-plot")).to_be_visible()
    page = visit(f"/job?job={seed.done.id}&view=Log")
    expect(page.get_by_text("candidate 5 failed: the trainer")).to_be_visible()


def test_a_winner_is_downloaded_as_onnx(seed: Seed, visit: Callable[[str], Page]) -> None:
    page = visit(f"/candidate?job={seed.done.id}&arm=winner&number=0")
    expect(page.get_by_text("zoo.load")).to_be_visible()
    expect(page.get_by_test_id("stVegaLiteChart")).to_be_visible()  # how it learned
    with page.expect_download() as download:
        page.get_by_role("button", name="ONNX").click()
    assert Path(download.value.path()).read_bytes() == b"an ONNX file"
    with page.expect_download() as download:
        page.get_by_role("button", name="safetensors").click()
    assert len(Path(download.value.path()).read_bytes()) > seed.chain.num_params * 4


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/zoo", "Saved by sharing"),
        ("/zoo?kind=Blocks", "Parameters at most"),
        ("/chains?chain=champion", "Wiring of the normal cell"),
        ("/system", "Devices"),
        ("/candidate", "No candidate is chosen"),
        ("/job", "No job is chosen"),
        ("/job?job=job_absent", "job_absent"),
        ("/chains?chain=absent12", "absent12"),
    ],
)
def test_every_page_draws(visit: Callable[[str], Page], path: str, text: str) -> None:
    expect(visit(path).get_by_text(text).first).to_be_visible()


def test_a_search_is_previewed_submitted_watched_and_cancelled(
    server: str, visit: Callable[[str], Page]
) -> None:
    page = visit("/submit")
    page.get_by_label("Name", exact=True).fill("from the browser")
    page.get_by_role("textbox", name="Limits, one a line").fill("latency_ms<=1000")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_text("--limit 'latency_ms<=1000'")).to_be_visible()
    page.get_by_role("button", name="Preview the cost").click()
    expect(page.get_by_text("The limits can be met.")).to_be_visible(timeout=200_000)
    expect(page.get_by_text("Architectures in the space")).to_be_visible()
    page.get_by_role("button", name="Submit the search").click()
    expect(page.get_by_role("heading", name="from the browser")).to_be_visible()
    confirm(page, "Cancel", "Cancel the job")
    expect(page.get_by_test_id("stMain").get_by_text("cancelled").first).to_be_visible()
    with Zoo(server) as zoo:
        job = next(job for job in zoo.jobs() if job.name == "from the browser")
        assert job.state is JobState.CANCELLED
    expect(visit("/").get_by_role("link", name="from the browser")).to_be_visible()


def test_a_wrong_limit_is_said_and_nothing_can_be_submitted(visit: Callable[[str], Page]) -> None:
    page = visit("/submit")
    page.get_by_role("textbox", name="Limits, one a line").fill("latency<3")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_text("is no limit; write it as")).to_be_visible()
    expect(page.get_by_role("button", name="Submit the search")).to_have_count(0)


def test_a_paused_search_is_resumed_and_cloned(seed: Seed, visit: Callable[[str], Page]) -> None:
    page = visit(f"/job?job={seed.done.id}")
    page.get_by_role("button", name="Clone").click()
    page.get_by_role("textbox", name="Changes, one a line").fill(
        "method.params.candidates=2\nnonsense=1"
    )
    page.keyboard.press("Control+Enter")
    page.get_by_role("button", name="Submit the clone").click()
    expect(page.get_by_text("nonsense").last).to_be_visible()
    page.get_by_role("textbox", name="Changes, one a line").fill("method.params.candidates=2")
    page.keyboard.press("Control+Enter")
    page.get_by_role("button", name="Submit the clone").click()
    page.wait_for_url(lambda url: seed.done.id not in url)
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_role("button", name="Cancel")).to_be_visible()
    confirm(page, "Cancel", "Cancel the job")
    expect(page.get_by_test_id("stMain").get_by_text("cancelled").first).to_be_visible()


def test_a_candidate_is_drawn_as_a_graph(seed: Seed, visit: Callable[[str], Page]) -> None:
    page = visit(f"/candidate?job={seed.done.id}&arm=search&number=1")
    page.get_by_text("Draw it").click()
    expect(page.get_by_text("Wiring of the normal cell")).to_be_visible()
    expect(page.get_by_test_id("stGraphVizChart").first).to_be_visible()


def test_a_failed_job_is_tried_again_and_deleted(
    seed: Seed, server: str, visit: Callable[[str], Page]
) -> None:
    page = visit(f"/job?job={seed.failed.id}")
    page.get_by_role("button", name="Retry").click()
    page.wait_for_url(lambda url: seed.failed.id not in url)
    expect(page.get_by_role("button", name="Delete")).to_be_visible()  # it failed again
    with Zoo(server) as zoo:
        job_id = page.url.rpartition("job=")[2].partition("&")[0]
        assert zoo.job(job_id).spec == seed.failed.spec
        confirm(page, "Delete", "Delete the job")
        expect(page.get_by_role("heading", name="Jobs")).to_be_visible()
        with pytest.raises(NotFoundError):
            zoo.job(job_id)


def test_beyond_this_machine_every_visitor_signs_in(
    seed: Seed, server: str, browser: Browser
) -> None:
    with Zoo(seed.url) as zoo:
        _, secret = zoo.create_key("visitor", owner="local", scopes=["read"])
    with pages_of(server, address="0.0.0.0") as base:
        page = browser.new_page()
        page.set_default_timeout(SLOW_MS)
        page.goto(base)
        given = page.locator('input[type="password"]')
        given.fill("nonsense")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_text("holds no API key")).to_be_visible()
        expect(page.get_by_role("link", name="first light")).to_have_count(0)
        given.fill(secret)
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("link", name="first light").first).to_be_visible()
        page.get_by_role("button", name="Sign out").click()
        expect(given).to_be_visible()
        page.close()
    with pages_of(seed.url, address="0.0.0.0") as base:
        page = browser.new_page()
        page.goto(base)
        expect(page.get_by_text("which asks for an API key")).to_be_visible()
        expect(page.get_by_role("link", name="first light")).to_have_count(0)
        page.close()


def test_ten_thousand_candidates_are_drawn_by_webgl(tmp_path: Path, browser: Browser) -> None:
    many = seed_store(tmp_path, candidates=8)
    multiply(tmp_path, many.done, 10_000)
    with pages_of(many.url) as base:
        page = browser.new_page()
        page.set_default_timeout(SLOW_MS)
        page.goto(f"{base}/job?job={many.done.id}&view=Log")
        expect(page.get_by_text("candidate 5 failed: the trainer")).to_be_visible()
        _show_front(page)
        page.close()


def _show_front(page: Page) -> None:
    page.get_by_role("radio", name="Front").click()
    expect(page.locator(".js-plotly-plot .gl-canvas").first).to_be_attached()
