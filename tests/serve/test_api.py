"""The HTTP API: it answers as the index and the models do, and refuses in words what it cannot use."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import given
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from pipelines.models.prediction import load_answerer
from pipelines.search.searcher import Searcher
from tests.faults.mutations import fuzz
from tests.serve.conftest import MAX_UPLOAD_MB, VIDEOS, Server

QUERY = "a red circle moves left"
VIDEO = {"Content-Type": "video/mp4"}


def post(server: Server, path: str, **body: Any) -> requests.Response:
    return requests.post(f"{server.address}/api/{path}", json=body, timeout=180)


def upload(server: Server, content: bytes, kind: str = "video/mp4") -> requests.Response:
    headers = {"Content-Type": kind}
    return requests.post(f"{server.address}/api/uploads", data=content, headers=headers, timeout=180)


def clip(server: Server) -> Path:
    return sorted(server.videos.glob("*.mp4"))[0]


def test_health_says_what_is_served(server: Server) -> None:
    found = requests.get(f"{server.address}/api/health", timeout=60).json()
    assert found["status"] == "ok" and found["videos"] == VIDEOS and found["answers"] is True and found["maps"] is True


def test_search_and_map_are_those_of_the_index(server: Server) -> None:
    searcher = Searcher(str(server.index))
    (expected,) = searcher.search([QUERY], top=5)
    found = post(server, "search", query=QUERY, top=5).json()["matches"]
    assert [match["video_id"] for match in found] == [match.video_id for match in expected]
    assert [match["score"] for match in found] == pytest.approx([match.score for match in expected], abs=1e-5)
    assert {match["name"] for match in found} <= {path.name for path in server.videos.iterdir()}
    drawn = post(server, "interaction", query=QUERY, video_id=found[0]["video_id"]).json()
    own = searcher.interaction(QUERY, searcher.clip(found[0]["video_id"]))
    assert drawn["moment"] == found[0]["moment"]
    for row, expected_row in zip(drawn["values"], own.values, strict=True):
        assert row == pytest.approx(list(expected_row), abs=1e-6)


def test_queries_at_the_same_time_get_each_its_own_answer(server: Server) -> None:
    """They are searched together, and have to be told apart again."""
    queries = [
        (f"{colour} {shape}", top) for colour in ("red", "blue") for shape in ("circle", "star") for top in (1, 4)
    ]
    alone = [post(server, "search", query=query, top=top).json() for query, top in queries]
    with ThreadPoolExecutor(len(queries)) as threads:
        together = list(threads.map(lambda asked: post(server, "search", query=asked[0], top=asked[1]).json(), queries))
    for one, other, (query, top) in zip(alone, together, queries, strict=True):
        assert other["query"] == query and len(other["matches"]) == top
        assert [match["score"] for match in other["matches"]] == pytest.approx(
            [match["score"] for match in one["matches"]], abs=1e-5
        )


def test_frames_are_pictures(server: Server) -> None:
    (match,) = post(server, "search", query=QUERY, top=1).json()["matches"]
    place = f"{server.address}/api/videos/{match['video_id']}"
    assert len(requests.get(place, timeout=60).json()["time_s"]) == match["frames"]
    picture = requests.get(f"{place}/frames/0", timeout=60)
    assert picture.headers["Content-Type"] == "image/jpeg" and picture.content.startswith(b"\xff\xd8")
    beyond = requests.get(f"{place}/frames/{match['frames']}", timeout=60)
    assert beyond.status_code == 404 and "numbered from 0" in beyond.json()["detail"]


def test_answers_are_those_of_the_model(server: Server) -> None:
    searcher, answerer = Searcher(str(server.index)), load_answerer(str(server.video_qa))
    (match,) = post(server, "search", query=QUERY, top=1).json()["matches"]
    question = "what color is the circle"
    expected = answerer.answer(searcher.segment(match["video_id"]).uri, question, top=3)
    found = post(server, "ask", question=question, video_id=match["video_id"], top=3).json()["answers"]
    assert [item["answer"] for item in found] == [item.answer for item in expected]
    assert [item["probability"] for item in found] == pytest.approx([item.probability for item in expected], abs=1e-5)


def test_an_uploaded_clip_is_treated_as_one_of_the_index(server: Server) -> None:
    """The same file gives the same features, map and answers."""
    path = clip(server)
    (match,) = (m for m in post(server, "search", query=QUERY, top=VIDEOS).json()["matches"] if m["name"] == path.name)
    response = upload(server, path.read_bytes())
    assert response.status_code == 201, response.text
    own = response.json()
    assert len(own["time_s"]) == match["frames"]
    drawn = post(server, "interaction", query=QUERY, video_id=own["video_id"]).json()
    assert drawn["score"] == pytest.approx(match["score"], abs=2e-3) and drawn["moment"] == match["moment"]
    asked = {"question": "how many shapes are there", "top": 3}
    answers = [post(server, "ask", video_id=item["video_id"], **asked).json()["answers"] for item in (own, match)]
    assert answers[0] == answers[1]
    assert requests.get(f"{server.address}/api/videos/{own['video_id']}/frames/0", timeout=60).status_code == 200


def test_clips_that_cannot_be_used_are_refused_in_words(server: Server) -> None:
    whole = clip(server).read_bytes()
    for content, kind, status, words in (
        (b"", "video/mp4", 409, "this is not a video"),
        (b"these are not pictures\n" * 100, "video/mp4", 409, "this is not a video: the file does not begin like MP4"),
        (whole[: len(whole) // 2], "video/mp4", 409, "the clip cannot be used (undecodable)"),
        (whole, "text/html", 415, "the type is 'text/html'"),
        (b"\0" * int(MAX_UPLOAD_MB * 1e6 + 1), "video/mp4", 413, "the clip is larger than 1 MB"),
    ):
        response = upload(server, content, kind)
        assert (response.status_code, words in response.json()["detail"]) == (status, True), response.text


def test_a_clip_without_a_length_is_cut_off_at_the_limit(server: Server) -> None:
    parts = (b"\0" * 100_000 for _ in range(40))
    response = requests.post(f"{server.address}/api/uploads", data=parts, headers=VIDEO, timeout=180)
    assert response.status_code == 413


@pytest.mark.parametrize("video_id", ["nothing", "..", "upload-0", "%2e%2e%2f%2e%2e%2fetc%2fpasswd"])
def test_ids_that_are_none_find_nothing(server: Server, video_id: str) -> None:
    for place in (f"videos/{video_id}", f"videos/{video_id}/frames/0"):
        assert requests.get(f"{server.address}/api/{place}", timeout=60).status_code in (404, 422)
    assert post(server, "interaction", query=QUERY, video_id=video_id).status_code in (404, 422)


def test_another_name_for_this_machine_is_refused(server: Server) -> None:
    """Otherwise a web page could reach the server through a name that it makes point here."""
    headers = {"Host": "evil.example"}
    assert requests.get(f"{server.address}/api/health", headers=headers, timeout=60).status_code == 400


def test_the_page_asks_nobody_else(server: Server) -> None:
    response = requests.get(server.address, timeout=60)
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    assert not re.search(r"https?:|@import|url\(", response.text)


def test_no_request_that_the_schema_allows_is_a_server_error(server: Server) -> None:
    schema = schemathesis.openapi.from_url(f"{server.address}/api/openapi.json")
    checks = (not_a_server_error, content_type_conformance, response_schema_conformance)
    tried = []
    for found in schema.get_all_operations():
        operation = found.ok()
        tried.append(operation.path)

        @fuzz(5)
        @given(operation.as_strategy())
        def send(case: schemathesis.Case) -> None:
            case.validate_response(case.call(timeout=180), checks=checks)

        send()
    assert len(tried) == 7
