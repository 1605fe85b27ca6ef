"""Compares evaluations: ``python -m jobs.compare none=RUN1,RUN2 estimator=RUN3,RUN4``.

A side is a name and the places of its evaluations, one per seed: a ``metrics.json``, its folder, or a workspace that
holds one evaluation. Every other side is compared with the first one, by a bootstrap over the videos that draws the
same ones for all. Evaluations with other protocols are refused; ``--allow "[FIELD]"`` names fields that may
differ, because their effect is what you want to measure. ``PLACE#VARIANT`` takes the figures of a convention or a
post-processing: ``raw=RUN "dual=RUN#dual_softmax" --allow "[post_processing]"``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from jsonargparse import ActionConfigFile, ArgumentParser

from hbi_models.config_fields import require
from jobs.settings import run_job, set_up_logging
from pipelines.workspace.storage import Storage

_VARIANT = re.compile(r"(.+)#([a-z_]+)", re.DOTALL)
_NAMED = re.compile(r"([\w .+-]+)=(.*)", re.DOTALL)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the job and returns its exit code."""
    parser = ArgumentParser(description="Compares evaluations of two or more ways of training.", allow_abbrev=False)
    parser.add_argument("--config", action=ActionConfigFile, help="These options from a YAML file.")
    parser.add_argument("sides", type=str, nargs="+", help="NAME=PLACE[,PLACE…], one place per seed.")
    parser.add_argument(
        "--task", type=str, default="retrieval", help="Of a workspace: retrieval or question answering."
    )
    parser.add_argument("--allow", type=list[str], default=[], help="Fields of the protocol that may differ: [split].")
    parser.add_argument("--resamples", type=int, default=1000, help="Resamples of the videos.")
    parser.add_argument("--seed", type=int, default=0, help="Of the resampling.")
    parser.add_argument("--output", type=str | None, help="Folder or URI for comparison.json, .txt and .png.")
    options = parser.parse_args(arguments)
    set_up_logging(None, name="compare")
    from pipelines.compare.chart import difference_chart
    from pipelines.compare.measured import STAGES, Side, read_measured, require_comparable
    from pipelines.compare.paired import compare, comparison_document
    from pipelines.evaluate.documents import describe_protocol
    from pipelines.figures.files import png
    from pipelines.tables import differences_table

    require(options.task in STAGES, f"--task is {options.task!r}; it must be one of: {', '.join(STAGES)}")
    places = named_places(options.sides)
    sides = [
        Side(name, [read_measured(*_place_and_variant(place), stage=STAGES[options.task]) for place in listed])
        for name, listed in places.items()
    ]
    require_comparable(sides, allowed=options.allow)
    first, *others = sides
    found = {side.name: compare(first, side, seed=options.seed, resamples=options.resamples) for side in others}
    # A published checkpoint does not say its seed.
    known = {side.name: ["unknown" if run.seed is None else str(run.seed) for run in side.runs] for side in sides}
    seeds = "; ".join(f"{name} {', '.join(listed)}" for name, listed in known.items())
    tables = [differences_table(first.name, name, differences) for name, differences in found.items()]
    text = "\n\n".join([describe_protocol(first.runs[0].protocol, seeds), *tables])
    print(text)
    if options.output is not None:
        output = Storage(options.output)
        output.write_json(
            "comparison.json", comparison_document(sides, found, seed=options.seed, resamples=options.resamples)
        )
        output.write_bytes("comparison.txt", f"{text}\n".encode())
        output.write_bytes("comparison.png", png(difference_chart(first.name, found)))
        print(f"\n{output.place('comparison.json')}")
    return 0


def _place_and_variant(place: str) -> tuple[str, str | None]:
    match = _VARIANT.fullmatch(place)
    return (match[1], match[2]) if match else (place, None)


def named_places(sides: Sequence[str]) -> Mapping[str, list[str]]:
    """The places of each side by its name; a side without a name has its text.

    Raises:
        ValueError: there are fewer than two, a name is there twice, or a side has no place.
    """
    require(len(sides) >= 2, "there is nothing to compare with; give two sides or more: none=RUN1,RUN2 exact=RUN3,RUN4")
    places: dict[str, list[str]] = {}
    for side in sides:
        match = _NAMED.fullmatch(side)
        name, listed = (match[1], match[2]) if match else (side, side)
        require(name not in places, f"there are two sides {name!r}; give them other names: NAME=PLACE")
        places[name] = [place for place in listed.split(",") if place]
        require(bool(places[name]), f"the side {name!r} has no place; give NAME=PLACE[,PLACE…]")
    return places


if __name__ == "__main__":
    run_job(main)
