"""The live page in a real browser: Debian's chromium, driven by Playwright.

apt-get install chromium && pip install playwright axe-playwright-python
pytest -m browser tests/server/test_live_page.py
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import threading
from pathlib import Path

import pytest

from deepsched.benchmark import bundled_model
from deepsched.client.engine import open_server
from tests.server.conftest import started

sync_api = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
expect = sync_api.expect

# Playwright's own loop leaves sockets to the garbage collector.
pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("default")]

SCREENSHOT = os.environ.get("DEEPSCHED_SCREENSHOT")
"""Where to save the picture that docs/observing.md shows; unset: nowhere."""


@pytest.fixture(scope="module")
def chromium():
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("chromium is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def squeezenet(tmp_path_factory):
    """A server of SqueezeNet."""
    path = tmp_path_factory.mktemp("models") / "squeezenet.onnx"
    shutil.copy(bundled_model("squeezenet"), path)
    with started(path, "--port", 0, "--grpc-port", 0, "--lame-duck", 0) as address:
        yield address


@pytest.fixture
def opened(chromium, squeezenet):
    """Opens the page; what goes wrong in it fails the test."""
    contexts, wrong = [], []

    def open_page(url=f"http://{squeezenet.http}/", **options):
        context = chromium.new_context(viewport={"width": 1120, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda it: wrong.append(it.text) if it.type == "error" else None)
        page.on("request", lambda it: page.requested.append(it.url))
        page.requested = []
        page.wrong = wrong
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


@contextlib.contextmanager
def load(server, callers=3):
    """Requests one after another from each of some threads."""
    stop = threading.Event()
    with contextlib.closing(open_server(f"http://{server.http}")) as engine:
        inputs = engine.generate_random_inputs()
        engine.run(inputs)

        def call():
            while not stop.is_set():
                engine.run(inputs)

        threads = [threading.Thread(target=call) for _ in range(callers)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()


def test_requests_are_drawn_on_the_streams_that_serve_them(opened, squeezenet):
    page = opened()
    with load(squeezenet):
        expect(page.locator("#lanes .run").nth(5)).to_be_attached(timeout=30_000)
        expect(page.locator("#link")).to_have_text("Live")
        expect(page.locator("#rate")).not_to_have_text("0")
        expect(page.locator("#moment")).to_have_text(
            re.compile(r"elastic: .* that ended .* s ago, with \d+ requests; at most \d+ waited")
        )
        expect(page.locator("#models tr").first).to_contain_text("squeezenet")
        page.get_by_text("The requests in this picture, as a table").click()
        expect(page.locator("#requests tr").first).to_contain_text("done")
        expect(page.locator(".cpu.stream").first).to_be_visible()
        if SCREENSHOT:
            page.get_by_text("The requests in this picture, as a table").click()
            page.wait_for_timeout(20_000)  # for the small charts
            page.screenshot(path=SCREENSHOT, full_page=True)
    origin = f"http://{squeezenet.http}/"
    assert len(page.requested) > 3
    assert all(url.startswith(origin) for url in page.requested)  # works offline: no CDN


def test_pausing_holds_the_picture_still_by_keyboard_alone(opened, squeezenet):
    page = opened()
    with load(squeezenet):
        expect(page.locator("#lanes .run").first).to_be_attached(timeout=30_000)
        page.keyboard.press("Tab")
        expect(page.get_by_text("Skip to the figures")).to_be_focused()
        page.keyboard.press("Tab")
        page.keyboard.press("Space")
        expect(page.locator("#link")).to_have_text(re.compile(r"^Paused at \d"))
        expect(page.get_by_role("button", name="Pause")).to_have_attribute("aria-pressed", "true")
        held = page.locator("#moment").text_content()
        with page.expect_console_message(lambda it: it.text == "two more", timeout=30_000):
            page.evaluate(
                "let more = 0; new EventSource('live/events').onmessage = "
                "() => { if (++more === 2) console.log('two more'); }"
            )
        assert page.locator("#moment").text_content() == held
        page.keyboard.press("Space")
        expect(page.locator("#link")).to_have_text("Live")
        expect(page.locator("#moment")).not_to_have_text(held, timeout=30_000)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_barrier(opened, squeezenet, scheme):
    page = opened(color_scheme=scheme)
    with load(squeezenet):
        expect(page.locator("#lanes .run").first).to_be_attached(timeout=30_000)
        page.get_by_text("The requests in this picture, as a table").click()
        expect(page.locator("#requests tr").first).to_be_attached()
        page.get_by_role("button", name="Pause").click()
        # Our policy lets no script in that is not the page's: axe comes by the debugger.
        found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", background)[:3])) / 3
    assert (brightness < 64) == (scheme == "dark")


def test_a_page_whose_server_has_gone_says_so_and_looks_like_it(opened, tmp_path, mlp):
    with started(mlp, "--port", 0, "--grpc-port", 0, "--lame-duck", 0) as address:
        page = opened(f"http://{address.http}/")
        expect(page.locator("#link")).to_have_text("Live", timeout=30_000)
        os.kill(address.pid, signal.SIGSTOP)  # the connection stays, and nothing comes
        try:
            expect(page.locator("#link")).to_have_text(
                re.compile("^Nothing new since"), timeout=30_000
            )
        finally:
            os.kill(address.pid, signal.SIGCONT)
        expect(page.locator("#link")).to_have_text("Live", timeout=30_000)
    expect(page.locator("#link")).to_have_text(re.compile("^The server stopped at|^No connection"))
    assert "grayscale" in page.evaluate("getComputedStyle(document.querySelector('main')).filter")
    page.wrong.clear()  # the browser complains of the lost connection


def test_names_of_models_are_text_whatever_they_hold(opened, chromium, tmp_path, mlp):
    path = Path(tmp_path, "<img src=x onerror=alert(1)>.onnx")
    shutil.copy(mlp, path)
    with started(path, "--port", 0, "--grpc-port", 0, "--lame-duck", 0) as address:
        page = opened(f"http://{address.http}/")
        expect(page.locator("#models th")).to_have_text("<img src=x onerror=alert(1)>")
        assert page.locator("#models img").count() == 0
    page.wrong.clear()
