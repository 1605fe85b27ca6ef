"""Annotations of moments in the layouts of QVHighlights and Charades-STA: which part of a video a text is about.

QVHighlights (Lei et al., NeurIPS 2021): JSON lines ``{"qid", "query", "vid", "duration", "relevant_windows": [[start_s,
end_s], …], …}``. Charades-STA (Gao et al., ICCV 2017): lines ``VIDEO START END##SENTENCE``, seconds with decimals.
Neither data set was available here: the layouts are the published ones, tested with contents of our own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from hbi_models.config_fields import require
from pipelines.datasets.annotations import clean_caption
from pipelines.datasets.record_files import Problems, parse_json, text_lines
from pipelines.workspace.errors import reason
from pipelines.workspace.storage import Storage
from pipelines.workspace.uris import last_name, parent_uri

MomentFormat = Literal["qvhighlights", "charades_sta"]

_CHARADES = re.compile(r"(\S+) (\d+(?:\.\d+)?) (\d+(?:\.\d+)?)##(.+)")


@dataclass(frozen=True, slots=True)
class MomentQuery:
    """A text and the parts ``[start_s, end_s)`` of a video that it is about."""

    video_id: str
    query: str
    spans: Sequence[tuple[float, float]]


def read_moments(file: str, form: MomentFormat) -> tuple[list[MomentQuery], list[str]]:
    """The queries of an annotation file, and a sentence about spans that do not end after their start: left out.

    Raises:
        ValueError: a line has another form, or there is no query.
    """
    lines = text_lines(Storage(parent_uri(file)).read_bytes(last_name(file)), file)
    problems = Problems(file)
    queries = list(_queries(lines, form, problems))
    problems.raise_if_any()
    # JSON may hold NaN, which fails the comparison, too.
    kept = [replace(query, spans=[span for span in query.spans if 0 <= span[0] < span[1]]) for query in queries]
    left_out = sum(len(query.spans) for query in queries) - sum(len(query.spans) for query in kept)
    kept = [query for query in kept if query.spans]
    require(bool(kept), f"{file} holds no query with a span; probe.moments_format is {form}")
    warning = f"{file}: {left_out:,} spans do not end after their start and are left out"
    return kept, [warning] if left_out else []


def _queries(lines: Sequence[str], form: MomentFormat, problems: Problems) -> Iterator[MomentQuery]:
    parse = _qvhighlights if form == "qvhighlights" else _charades
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            query = parse(line)
            if not clean_caption(query.query):
                raise ValueError("the query is empty")
            if not query.spans:
                raise ValueError("there is no span")
        except (ValueError, KeyError, TypeError) as error:
            problems.add(number, f"it lacks {error}" if isinstance(error, KeyError) else reason(error))
        else:
            yield query


def _qvhighlights(line: str) -> MomentQuery:
    record: Any = parse_json(line)
    if not isinstance(record, dict):
        raise ValueError("it is no JSON object")
    spans = [(float(start), float(end)) for start, end in record["relevant_windows"]]
    return MomentQuery(str(record["vid"]), clean_caption(str(record["query"])), spans)


def _charades(line: str) -> MomentQuery:
    match = _CHARADES.fullmatch(line)
    if match is None:
        raise ValueError("it is not of the form VIDEO START END##SENTENCE")
    return MomentQuery(match[1], clean_caption(match[4]), [(float(match[2]), float(match[3]))])
