"""Finds videos by what they show: ``python -m jobs.search --index URI "a red circle moves left"``.

Prints the best videos with their score and the time span that matches best. ``--queries FILE`` takes a
text file with one query a line. ``jobs.index`` makes the index; no Ray is started.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import ActionConfigFile, ArgumentParser

from jobs.settings import run_job, set_up_logging
from pipelines.datasets.record_files import text_lines
from pipelines.search.limits import check_counts, check_query
from pipelines.tables import table
from pipelines.workspace.storage import Storage
from pipelines.workspace.uris import last_name, parent_uri

if TYPE_CHECKING:
    from pipelines.search.searcher import Match


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the job and returns its exit code."""
    parser = ArgumentParser(description="Finds videos by what they show.", allow_abbrev=False)
    parser.add_argument("--config", action=ActionConfigFile, help="These options from a YAML file.")
    parser.add_argument("query", type=str, nargs="*", help="What to look for; each in quotes.")
    parser.add_argument("--index", type=str, required=True, help="Folder or URI of an index.")
    parser.add_argument("--queries", type=str | None, help="Text file in UTF-8 with one query a line.")
    parser.add_argument("--top", type=int, default=10, help="How many videos to show.")
    parser.add_argument("--candidates", type=int | None, help="Videos that the model ranks per query (default 200).")
    parser.add_argument(
        "--correct",
        type=Literal["qb_norm", "nnn"] | None,
        help="Correct the order for videos that are found too often, by the index's bank of captions.",
    )
    parser.add_argument("--json", action="store_true", help="Print one JSON object per query instead of tables.")
    options = parser.parse_args(arguments)
    queries = [*(options.query or []), *(_read_queries(options.queries) if options.queries else [])]
    if not queries:
        raise ValueError('there is no query; give one in quotes ("a red circle moves left"), or a file with --queries')
    set_up_logging(None, name="search")
    from pipelines.search.searcher import CANDIDATES, Searcher

    candidates = max(CANDIDATES, options.top) if options.candidates is None else options.candidates
    # Before the index and its model are loaded.
    for query in queries:
        check_query(query)
    check_counts(options.top, candidates)
    searcher = Searcher(options.index)
    found = searcher.search(queries, top=options.top, candidates=candidates, correction=options.correct)
    for query, matches in zip(queries, found, strict=True):
        if options.json:
            print(
                json.dumps({"query": query, "matches": [plain_match(match) for match in matches]}, ensure_ascii=False)
            )
        else:
            print(f"{query}\n\n{_matches_table(matches)}\n")
    return 0


def plain_match(match: Match) -> Mapping[str, Any]:
    """A match as JSON."""
    return {
        "video_id": match.video_id,
        "uri": match.uri,
        "score": match.score,
        "start_s": match.moment.start_s,
        "end_s": match.moment.end_s,
    }


def _matches_table(matches: Sequence[Match]) -> str:
    rows = [
        [str(place), f"{match.score:.4f}", f"{match.moment.start_s:.1f} – {match.moment.end_s:.1f}", match.uri]
        for place, match in enumerate(matches, start=1)
    ]
    return table(["", "score", "seconds", "video"], rows)


def _read_queries(file: str) -> list[str]:
    return list(filter(None, text_lines(Storage(parent_uri(file)).read_bytes(last_name(file)), file)))


if __name__ == "__main__":
    run_job(main)
