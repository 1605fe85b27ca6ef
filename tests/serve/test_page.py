"""The web page in Chromium: search, see a map, ask, upload; at a desk and on a phone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.serve.conftest import VIDEOS, Server

CHROMIUM = os.environ.get("HBI_CHROMIUM", "/usr/bin/chromium")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
SIZES = {"desk": (1200, 900), "phone": (375, 740)}
PATIENCE_MS = 120_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not Path(CHROMIUM).exists():
        pytest.skip(f"there is no {CHROMIUM}; install Chromium, or name it in HBI_CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(params=["desk", pytest.param("phone", marks=pytest.mark.long)])
def page(browser: Browser, server: Server, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The page, opened; afterwards nothing must have gone wrong in it, and nothing stick out at the side."""
    width, height = SIZES[request.param]
    context = browser.new_context(viewport={"width": width, "height": height})
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    complaints: list[str] = []
    asked: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda sent: asked.append(sent.url))
    page.goto(server.address)
    expect(page.locator("#status")).to_have_text(f"{VIDEOS} videos")
    yield page
    assert complaints == []
    assert all(url.startswith((server.address, "data:")) for url in asked)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for width, height in SIZES.values():
        page.set_viewport_size({"width": width, "height": height})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()


def search(page: Page, query: str) -> None:
    page.get_by_label("What the video shows").fill(query)
    page.get_by_role("button", name="Search").click()
    expect(page.locator("#results .card")).to_have_count(VIDEOS)


def test_a_search_shows_pictures_and_the_moment_that_matches(page: Page) -> None:
    search(page, "a red circle moves left")
    first = page.locator("#results .card").first
    expect(first.locator(".moment")).to_contain_text(" s")
    assert first.locator(".strip img").count() >= first.locator(".strip img.in").count() >= 1
    picture = first.locator(".strip img").first
    picture.scroll_into_view_if_needed()
    page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=picture.element_handle())


def test_the_map_shows_words_and_frames(page: Page) -> None:
    search(page, "a red circle")
    first = page.locator("#results .card").first
    first.get_by_role("button", name="Words and frames").click()
    expect(first.locator(".map tbody th")).to_have_text(["start", "a", "red", "circle", "end"])
    frames = first.locator(".strip img").count()
    assert first.locator(".map thead img").count() == frames
    assert first.locator(".map tbody td").count() == 5 * frames
    first.get_by_role("button", name="Words and frames").click()
    expect(first.locator(".map")).to_be_hidden()


@pytest.mark.long
def test_a_question_is_answered(page: Page) -> None:
    search(page, "a red circle")
    first = page.locator("#results .card").first
    first.get_by_label("Question about this video").fill("what color is the circle")
    first.get_by_role("button", name="Ask").click()
    expect(first.locator(".answers li")).to_have_count(5)
    expect(first.locator(".answers .share").first).to_contain_text("%")


@pytest.mark.long
def test_an_own_clip_can_be_asked_about(page: Page, server: Server) -> None:
    page.locator("#file").set_input_files(sorted(server.videos.glob("*.mp4"))[0])
    own = page.locator("#own .card")
    expect(own.locator("h2")).to_contain_text("(your clip)")
    own.get_by_label("Question about this video").fill("what shape is it")
    own.get_by_role("button", name="Ask").click()
    expect(own.locator(".answers li")).to_have_count(5)
    search(page, "a red circle")
    own.get_by_role("button", name="Words and frames").click()
    expect(own.locator(".map tbody th")).to_have_count(5)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"these are not pictures", "broken.mp4 was not taken: this is not a video: the file does not begin like MP4"),
        pytest.param(
            b"\0\0\0\x20ftypisom" + b"\0" * 500,
            "broken.mp4 was not taken: the clip cannot be used (undecodable)",
            marks=pytest.mark.long,
        ),
        pytest.param(b"\0" * 2_000_000, "broken.mp4 has 2.0 MB; up to 1 MB are taken", marks=pytest.mark.long),
    ],
)
def test_a_broken_file_gets_a_clear_message(page: Page, tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "broken.mp4").write_bytes(content)
    page.locator("#file").set_input_files(tmp_path / "broken.mp4")
    expect(page.get_by_role("alert")).to_contain_text(words, ignore_case=True)
    assert page.locator("#own .card").count() == 0


def test_what_a_user_types_is_never_a_part_of_the_page(page: Page) -> None:
    search(page, "<img src=x onerror=alert(1)> & <b>circle</b>")
    first = page.locator("#results .card").first
    first.get_by_role("button", name="Words and frames").click()
    expect(first.locator(".map tbody tr").first).to_be_visible()
    assert first.locator(".map b").count() == 0
