"""The page about a run: what is on it, and what a browser makes of it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from pipelines.report.page import make_page
from pipelines.workspace.artifact import Artifact
from tests.pipelines.report.run import BROKEN, HOSTILE, finished_run, reader_of, report_recipe

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def artifacts(folder: Path) -> dict[str, Artifact]:
    return finished_run(report_recipe(folder))


@pytest.fixture(scope="module")
def page(folder: Path, artifacts: dict[str, Artifact]) -> str:
    return make_page(reader_of(artifacts, report_recipe(folder)), report_recipe(folder))


@pytest.mark.slow
def test_the_page_needs_no_other_file_and_no_network(page: str) -> None:
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert links
    assert all(link.startswith(("data:", "#")) for link in links)
    assert "url(" not in page and "@import" not in page and "http" not in page


def test_text_from_the_data_is_text(page: str) -> None:
    assert page.count("<script>") == 1, "the page's own"
    # As a caption and in the title of its interaction, as a question, and as the message of an error.
    assert unescape(page).count(HOSTILE) >= 5


def test_the_page_shows_what_the_artifacts_hold(page: str) -> None:
    text = unescape(page)
    for stage in ("manifest", "frames", "retrieval", "evaluation", "qa_evaluation"):
        assert f"fingerprint-of-{stage}" in text
    assert f'<th scope="row">{BROKEN}</th><td>frames</td><td>undecodable</td>' in text
    assert "41.5 (30.2–52.8)" in text
    assert "text → video, published" in text and ">48.6<" in text
    for name in ("loss", "entity_nce", "score"):
        assert f'aria-label="{name}"' in text
    assert "tuning 0123" in text
    assert page.count('<figure class="picture">') == 3, "two interactions and a tuning"


def test_queries_come_with_what_they_found(folder: Path, artifacts: dict[str, Artifact]) -> None:
    best, worst = reader_of(artifacts, report_recipe(folder)).queries
    # Both found their video at once; the second was the surer.
    assert [query.own.video_id for query in best] == ["video5", "video4"]
    assert [(query.own.video_id, query.rank) for query in worst] == [("video3", 6), ("video6", 2)]
    assert [shown.is_right for shown in worst[0].found] == [False] * 5
    assert [shown.is_right for shown in worst[1].found] == [False, True, False, False, False]
    assert all(shown.picture.startswith("data:image/jpeg;base64,") for shown in worst[0].found)


def test_mistakes_come_by_type_the_surest_first(folder: Path, artifacts: dict[str, Artifact]) -> None:
    mistakes = reader_of(artifacts, report_recipe(folder)).content([]).mistakes
    assert [(kind, count) for kind, count, _ in mistakes] == [("what", 3), ("how", 1)]
    assert [item.given for item in mistakes[0][2]] == ["pink", "white"]


def test_the_data_are_counted_by_split(folder: Path, artifacts: dict[str, Artifact]) -> None:
    content = reader_of(artifacts, report_recipe(folder)).content([])
    assert [(row.name, row.videos, row.captions, row.questions) for row in content.splits] == [
        ("train", 3, 3, 0),
        ("test", 5, 5, 8),
    ]
    assert [chart.title for chart in content.statistics] == [
        "words of a caption, train",
        "seconds of a video, train",
        "words of a caption, test",
        "seconds of a video, test",
    ]
    assert content.statistics[1].across[0].text == "2.5" and content.statistics[1].across[1].text == "2.75"


def test_a_run_that_evaluates_nothing_has_a_page_too(folder: Path, artifacts: dict[str, Artifact]) -> None:
    inputs = {name: artifacts[name] for name in ("manifest", "frames", "retrieval")}
    page = make_page(reader_of(inputs, report_recipe(folder)), report_recipe(folder))
    assert '<h2 id="training">' in page
    assert '<h2 id="retrieval">' not in page and '<h2 id="answers">' not in page


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # A busy machine takes its time to start a browser.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=180_000)
        yield browser
        browser.close()


@pytest.mark.slow
def test_the_page_works_in_a_browser(browser: Any, page: str, tmp_path: Path) -> None:
    file = tmp_path / "index.html"
    file.write_text(page)
    opened = browser.new_page()
    opened.set_default_timeout(120_000)
    said: list[str] = []
    asked: list[str] = []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("dialog", lambda dialog: said.append(dialog.message))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(file.as_uri())
    opened.wait_for_function("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    opened.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
    for width in (1280, 375):
        opened.set_viewport_size({"width": width, "height": 800})
        assert opened.evaluate("document.documentElement.scrollWidth") <= width, "nothing is wider than the screen"
    visible = "[...document.querySelectorAll('#left-out tbody tr')].filter(row => !row.hidden).length"
    assert opened.evaluate(visible) == 1
    opened.fill("#filter", "no such word")
    assert opened.evaluate(visible) == 0
    opened.fill("#filter", BROKEN)
    assert opened.evaluate(visible) == 1
    opened.screenshot(path=tmp_path / "page.png", full_page=True)
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert said == []
    opened.close()
