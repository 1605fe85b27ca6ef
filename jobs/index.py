"""Builds an index of any videos: ``python -m jobs.index --checkpoint MODEL --videos PLACE --index URI``.

Without a trained model: ``--encoder ViT-B-32-quickgelu --pretrained openai``, or a local file of weights.

``--videos`` is a folder, a glob in quotes, a list (CSV, JSONL, or the manifest.parquet of a run) or a
file, locally or in an object store. The same command again looks for new videos and adds them. A model folder of ours
says how videos are sampled; a file that the published code wrote needs ``--config RECIPE``, which also gives resources
and limits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from jsonargparse import ArgumentParser

from hbi_models.clip.configs import ClipConfig
from hbi_models.config_fields import require
from hbi_models.zero_shot_config import ZeroShotConfig, ZeroShotPooling
from jobs.next_steps import command
from jobs.pipeline import add_rerun_changed, execute, start_log
from jobs.settings import read_recipe, recipe_parser, run_job
from pipelines.graph import make_index_graph
from pipelines.recipe.recipe import Recipe
from pipelines.search.search_model import SearchModel, pretrained_search_model, read_search_model
from pipelines.stages.index import publish
from pipelines.workspace.uris import absolute_uri


@cache
def make_parser() -> ArgumentParser:
    """The options of the job."""
    parser = recipe_parser("Builds an index of any videos, or takes new videos into it.")
    parser.add_argument("--checkpoint", type=str | None, help="Folder of ours or file of the published code.")
    parser.add_argument(
        "--encoder", type=str | None, help="In its place: an architecture of open_clip, untrained here."
    )
    parser.add_argument("--pretrained", type=str | None, help="Weights of the encoder: a file, or a tag of open_clip.")
    parser.add_argument("--tokenizer", type=str | None, help="Its tokenizer.json, where it would be downloaded.")
    parser.add_argument("--pooling", type=ZeroShotPooling | None, help="Of the encoder's frames (default mean).")
    parser.add_argument("--videos", type=str, required=True, help="Folder, glob, list or file; local, s3:// or gs://.")
    parser.add_argument("--index", type=str, required=True, help="Folder or URI of the index.")
    parser.add_argument("--plan", action="store_true", help="Print what would run, and why; run nothing.")
    parser.add_argument("--force", type=list[str], default=[], help="Stages to run again although they are done.")
    add_rerun_changed(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the job and returns its exit code."""
    recipe, options = read_recipe(make_parser(), arguments)
    # Before anything is written: what cannot be used is refused here.
    model = _model(options, recipe)
    recipe = replace(recipe, workspace=absolute_uri(options["index"]))
    if not options["plan"]:
        start_log(recipe, "index")
    graph, recipe = make_index_graph(recipe, options["videos"], model)
    code = execute(
        graph,
        recipe,
        plan_only=options["plan"],
        force=options["force"],
        rerun_changed=options["rerun_changed"],
    )
    if not options["plan"]:
        publish(graph)
        print(f"Search:    {command('search', '--index', options['index'], 'a red circle moves left')}")
    return code


def _model(options: Any, recipe: Recipe) -> SearchModel:
    """What the index is made with.

    Raises:
        FileNotFoundError, ValueError: nothing or too much is given, or it cannot be used.
    """
    checkpoint, encoder, pretrained = (options[name] for name in ("checkpoint", "encoder", "pretrained"))
    if checkpoint is not None:
        given = [f"--{name}" for name in ("encoder", "pretrained", "tokenizer", "pooling") if options[name] is not None]
        require(not given, f"--checkpoint says which encoder it has; leave out {' and '.join(given)}")
        return read_search_model(checkpoint, recipe)
    require(
        encoder is not None and pretrained is not None,
        "give --checkpoint, or --encoder with --pretrained: an architecture of open_clip and a file or tag of weights",
    )
    clip = ClipConfig(architecture=encoder, pretrained=pretrained, tokenizer=options["tokenizer"])
    config = ZeroShotConfig(clip=clip, max_frames=recipe.frames.max_frames, pooling=options["pooling"] or "mean")
    return pretrained_search_model(config, recipe)


if __name__ == "__main__":
    run_job(main)
