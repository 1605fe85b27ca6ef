"""Probes what a retrieval model understands: ``python -m jobs.probe --config RECIPE --checkpoint PLACE``.

Three probes: captions against captions with a changed word, R@1 with perturbed videos, and moments against planted or
annotated ones. ``--probe.parts`` selects among them. Generated data need no annotations. Real captions need a file of
negatives (``--probe.negatives``), moments one of QVHighlights or Charades-STA (``--probe.moments``). Without
``--checkpoint`` the model that the recipe trained is probed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from jsonargparse import ArgumentParser

from jobs.pipeline import add_rerun_changed, execute, start_log
from jobs.settings import read_recipe, recipe_parser, run_job
from pipelines.graph import make_probe_graph
from pipelines.stages.probe import PROBE, PROBE_FILE
from pipelines.tables import moments_table, negatives_table, perturbations_table

_TABLES = {"negatives": negatives_table, "perturbations": perturbations_table, "moments": moments_table}


@cache
def make_parser() -> ArgumentParser:
    """The options of the job."""
    parser = recipe_parser("Probes what a retrieval model understands of words, perturbed videos and moments.")
    parser.add_argument("--checkpoint", type=str | None, help="Folder of ours or file of the published code.")
    parser.add_argument("--plan", action="store_true", help="Print what would run, and why; run nothing.")
    parser.add_argument("--force", action="store_true", help="Probe again although it is done.")
    add_rerun_changed(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the job and returns its exit code."""
    recipe, options = read_recipe(make_parser(), arguments)
    if not options["plan"]:
        start_log(recipe, PROBE)
    graph = make_probe_graph(recipe, options["checkpoint"])
    code = execute(
        graph,
        recipe,
        plan_only=options["plan"],
        until_stage=PROBE,
        force=[PROBE] if options["force"] else [],
        rerun_changed=options["rerun_changed"],
    )
    if not options["plan"]:
        document = graph.output(PROBE).read_json(PROBE_FILE)
        for part, make in _TABLES.items():
            if part in document:
                print(f"\n{make(document[part])}")
    return code


if __name__ == "__main__":
    run_job(main)
