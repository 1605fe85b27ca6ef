"""Names and order of what the evaluations write, for modules that must not load PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import chain, count
from typing import Any

METRICS_FILE = "metrics.json"
RANKS_FILE = "ranks.parquet"
VARIANTS_FILE = "variants.parquet"
"""Ranks of the figures beside the raw ones."""
TOP_VIDEOS_FILE = "top_videos.parquet"
BANK_FILE = "bank.txt"
"""The training captions that post-processing used, one per line; an index can read it."""
ANSWERS_FILE = "answers.parquet"

POST_PROCESSING_NEEDS = {
    "dual_softmax": "all test queries at once (transductive)",
    "qb_norm": "a bank of training captions",
    "nnn": "a bank of training captions",
}
"""What each post-processing needs beside the query and the gallery."""


def by_questions(metrics: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Metrics by question type, those with most questions first; ``overall`` comes before all others."""
    # Where all questions have one type, it has as many of them as overall.
    return sorted(metrics.items(), key=lambda item: (-item[1]["questions"], item[0] != "overall"))


def curve_names(texts: Iterable[str], shortened: Callable[[str], str]) -> dict[str, str]:
    """Names for texts of the user's, in which MLflow allows few characters; numbers tell apart what ``shortened`` makes
    equal."""
    names: dict[str, str] = {}
    for text in sorted(texts):
        name = shortened(text)
        numbered = chain([name], (f"{name}_{number}" for number in count(2)))
        names[text] = next(each for each in numbered if each not in names.values())
    return names


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Fields in which two protocols differ, with both values; seeds, epochs and scores of validations may differ."""
    one, other = (_comparable(protocol) for protocol in (first, second))
    return {
        name: (one.get(name), other.get(name))
        for name in dict.fromkeys([*one, *other])
        if one.get(name) != other.get(name)
    }


def _comparable(protocol: Mapping[str, Any]) -> dict[str, Any]:
    fields = {name: value for name, value in protocol.items() if name != "seeds"}
    # Score, seed and epochs describe one training of several, not what is measured or how.
    if isinstance(chosen := protocol.get("checkpoint"), Mapping):
        fields["checkpoint"] = {
            name: value for name, value in chosen.items() if name not in ("score", "seed", "epochs")
        }
    return fields


def describe_protocol(protocol: Mapping[str, Any], seeds: str | None = None) -> str:
    """A protocol in words, for the note below a table; ``seeds`` take the place of its own."""
    missing = f"{protocol['missing_videos']:,} videos missing"
    if protocol["task"] == "retrieval":
        what = (
            f"{protocol['text_queries']:,} captions ({_spread(protocol['captions_per_video'])} a video) and "
            f"{protocol['gallery_videos']:,} videos"
        )
        how = (
            f"text to video: {protocol['text_to_video']}; video to text: {protocol['video_to_text']}; "
            f"post-processing: {protocol['post_processing']}"
        )
    else:
        what = (
            f"{protocol['questions']:,} questions ({_spread(protocol['questions_per_video'])} a video) about "
            f"{protocol['videos']:,} videos, {protocol['vocabulary']:,} answers to choose from"
        )
        how = f"answer: {protocol['answer']}"
    seeds = seeds or ", ".join(
        f"{name} {seed}"
        for name, seed in {"training": protocol["checkpoint"].get("seed"), **protocol["seeds"]}.items()
        if seed is not None
    )
    named = protocol.get("named")
    if named is not None:
        published = " and ".join(
            f"{' or '.join(f'{number:,}' for number in named[f'published_{what}'])} {what}"
            for what in ("videos", "captions")
            if named[f"published_{what}"]
        )
        how = f"protocol {named['name']}{'' if named['complete'] else f', incomplete: it has {published}'}; {how}"
    return (
        f"{what} of the split {protocol['split']} of {protocol['dataset']}, {missing}; {how}; "
        f"checkpoint: {_chosen(protocol)}; seeds: {seeds}"
    )


def protocol_tags(protocol: Mapping[str, Any]) -> dict[str, str]:
    """A protocol as tags of a run: names and texts."""
    tags: dict[str, str] = {}
    for name, value in protocol.items():
        if isinstance(value, Mapping):
            tags |= {f"protocol.{name}.{part}": str(item) for part, item in value.items()}
        else:
            tags[f"protocol.{name}"] = str(value)
    return tags


def _chosen(protocol: Mapping[str, Any]) -> str:
    chosen = protocol["checkpoint"]
    text = str(chosen["chosen"])
    if "epochs" in chosen:
        text += f" of {chosen['epochs']}"
    if "videos" in chosen:
        text += f" on {chosen['videos']:,} videos of the split {chosen['split']}"
    return text + (", the tested one" if chosen.get("split") == protocol["split"] else "")


def _spread(counts: Mapping[str, float]) -> str:
    if counts["least"] == counts["most"]:
        return f"{counts['least']:,}"
    return f"{counts['least']:,} to {counts['most']:,}, mean {counts['mean']:.1f}"


def with_interval(metric: Mapping[str, float]) -> str:
    """A metric and its 95% interval in words: ``45.1 (43.0–47.2)``."""
    return f"{metric['value']:.1f} ({metric['low']:.1f}–{metric['high']:.1f})"
