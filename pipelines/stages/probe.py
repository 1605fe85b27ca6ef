"""The stage ``probe``: what a retrieval model understands of words, of perturbed videos and of moments."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from pipelines.evaluate.documents import curve_names
from pipelines.recipe.recipe import Recipe
from pipelines.stages.frames import frames_pool
from pipelines.stages.settings import counting, given_model
from pipelines.stages.stage import Stage, StageContext
from pipelines.stages.training import say_what_is_left_out
from pipelines.workspace.artifact import Counts

if TYPE_CHECKING:
    from pipelines.splits import SplitView

PROBE = "probe"
PROBE_FILE = "probe.json"
NEGATIVES_TABLE = "negatives.parquet"
CHART = "perturbations.png"


def probe_stage(recipe: Recipe, checkpoint: str) -> Stage:
    """Probes ``checkpoint``, a folder of ours or a file of the published code.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: a part is asked for that the data do not allow.
    """
    parts = recipe.probe.parts_of(generated=recipe.data.shapes is not None)

    def run(context: StageContext) -> Counts:
        from pipelines.splits import SplitView

        pool = frames_pool(context.workspace, recipe).storage
        manifest, frames = context.inputs["manifest"].storage, context.inputs["frames"].storage
        view = SplitView(manifest, frames, pool, recipe.probe.split)
        say_what_is_left_out(PROBE, view)
        document = probe(recipe, context, view, checkpoint, parts)
        flat = _flat(document)
        context.output.write_json(PROBE_FILE, document)
        context.tracker.log_metrics(flat)
        context.tracker.log_files(context.output, [PROBE_FILE])
        return {"rows": len(view), "errors": 0}

    settings: dict[str, Any] = {
        **counting(recipe.probe),
        "parts": list(parts),
        "level_rates": recipe.evaluation.level_rates,
        "seed": recipe.seed,
        **given_model(checkpoint, recipe.model),
    }
    reads = {"the checkpoint of probe": checkpoint}
    return Stage(name=PROBE, version=1, settings=settings, inputs=("manifest", "frames"), run=run, reads=reads)


def probe(
    recipe: Recipe, context: StageContext, view: SplitView, checkpoint: str, parts: Collection[str]
) -> dict[str, Any]:
    """Does the ``parts`` of a probe; returns their document, and writes the table and the chart that go with it."""
    from pipelines.evaluate.actors import start_actors, stop_actors
    from pipelines.evaluate.probe_actor import ProbeActor
    from pipelines.evaluate.probe_material import frame_times, moment_queries, word_pairs
    from pipelines.evaluate.probing import Intervals, probe_moments, probe_negatives, probe_perturbations
    from pipelines.evaluate.protocol import retrieval_protocol
    from pipelines.figures.files import png
    from pipelines.figures.robustness import robustness_chart

    config, settings = recipe.probe, recipe.evaluation
    intervals = Intervals(config.bootstrap_samples, recipe.seed)
    view.require_captions("probe.split")
    captions, owners, _ = view.texts_of(range(len(view)))
    document: dict[str, Any] = {
        "protocol": retrieval_protocol(
            dataset=recipe.data.name,
            split=config.split,
            video_ids=view.store.video_ids,
            captions=captions,
            video_of_text=owners,
            missing_videos=int(context.inputs["manifest"].counts.get(f"missing_{config.split}", 0))
            + view.without_frames,
            videos_without_caption=view.without_texts,
            checkpoint=checkpoint,
            seed=recipe.seed,
        )
    }
    # The user's files are read before a model is loaded, so that errors in them show at once.
    pairs = word_pairs(recipe, view) if "negatives" in parts else []
    queries, prior = moment_queries(recipe, view) if "moments" in parts else ([], 0.0)
    actors = start_actors(
        ProbeActor, checkpoint, recipe.model, view, settings, resources=recipe.resources.evaluation, most=len(view)
    )
    if "negatives" in parts:
        document["negatives"], table = probe_negatives(
            actors, pairs, view.store.video_ids, batch_size=config.batch_size, intervals=intervals
        )
        context.output.write_table(NEGATIVES_TABLE, table)
    if "perturbations" in parts:
        document["perturbations"] = probe_perturbations(actors, view, tile=settings.tile, intervals=intervals)
        context.output.write_bytes(CHART, png(robustness_chart(document["perturbations"])))
    if "moments" in parts:
        times = frame_times(frames_pool(context.workspace, recipe), context.inputs, view)
        document["moments"] = probe_moments(
            actors, queries, times, prior=prior, batch_size=config.batch_size, intervals=intervals
        )
    stop_actors(actors)
    return document


def _flat(document: dict[str, Any]) -> dict[str, float]:
    """The figures as curves are named."""
    flat: dict[str, float] = {}
    negatives = document.get("negatives", {})
    names = curve_names(negatives, _name)
    for kind, values in negatives.items():
        # Beside the figures stand counts, which have no value with an interval.
        flat |= {
            f"negatives/{names[kind]}/{name}": each["value"] for name, each in values.items() if isinstance(each, dict)
        }
    for name, values in document.get("perturbations", {}).items():
        flat |= {f"perturbations/{name}/{at}": each["value"] for at, each in enumerate(values["recall_at_1"])}
    for name, values in document.get("moments", {}).items():
        if isinstance(values, dict):
            flat |= {f"moments/{name}/{metric}": each["value"] for metric, each in values.items()}
    return {_name(name): value for name, value in flat.items()}


def _name(text: str) -> str:
    """MLflow takes few characters in a name."""
    return "".join(letter if letter.isalnum() or letter in "/_.-" else "_" for letter in text)
