"""The stages of an index: what the collection holds, its frames, and the features to search in.

    collection ─► manifest ─► frames ─► index

The first two are those of every pipeline, so an index that is made again decodes only new videos, and
those that cannot be used become rows of the errors table. Features lie in a pool named by the model
alone. An index brings its model along: searching needs nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.compute as pc

from hbi_models.configs import RetrievalConfig, require
from pipelines.configs import DataConfig, FramesConfig, IndexingConfig, Recipe
from pipelines.data.frames_stage import frames_pool, frames_settings, frames_stage
from pipelines.progress import Progress
from pipelines.records import FEATURES, INDEX_FILE, MANIFEST_FILE
from pipelines.search.collection import collection_stage, folder_of_collection
from pipelines.shards import ShardPool, Work, map_shards, newest_rows, split_shards
from pipelines.stages import Artifact, Counts, Graph, Stage, StageContext, digest, plain
from pipelines.storage import DamagedFileError, Storage, absolute_uri, content_digest
from pipelines.train.layout import DESCRIPTION, FRAMES_JSON, MODEL
from pipelines.train.model_folder import is_published_file, kind_of_model, model_folder

CURRENT = "index.json"
"""At the root of an index: the artifact that searches use."""

VECTORS = "vectors.faiss"
"""The first pass, as Faiss writes it."""


@dataclass(frozen=True)
class SearchModel:
    """A retrieval model to make an index with."""

    checkpoint: str
    """A folder of ours, or a file of the published code."""
    config: RetrievalConfig
    frames: FramesConfig
    """How the videos that it was trained on were sampled."""
    digest: str
    """Of its weights and configuration."""


def read_search_model(checkpoint: str, recipe: Recipe) -> SearchModel:
    """Looks at ``checkpoint`` without loading it; where it does not say its configuration or frames, ``recipe`` does.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it holds another kind of model.
    """
    if is_published_file(checkpoint):
        contents = {"weights": content_digest(checkpoint), "config": plain(recipe.model)}
        return SearchModel(checkpoint, recipe.model, recipe.frames, digest(contents))
    from pipelines.evaluate.one_video import frames_of
    from pipelines.train.checkpoints import WEIGHTS, config_from_plain

    folder = model_folder(checkpoint)
    kind = kind_of_model(folder)
    require(kind == "retrieval", f"{checkpoint} holds a model of kind {kind!r}; one of kind 'retrieval' is needed")
    description = folder.read_json(DESCRIPTION)["config"]
    config: RetrievalConfig = config_from_plain(RetrievalConfig, description, place=folder.place(DESCRIPTION))
    frames = frames_of(checkpoint, None if recipe == Recipe(workspace=recipe.workspace) else recipe)
    weights = content_digest(f"{absolute_uri(checkpoint)}/{WEIGHTS}")
    return SearchModel(checkpoint, config, frames, digest({"weights": weights, "config": plain(config)}))


def make_index_graph(recipe: Recipe, videos: str, model: SearchModel) -> tuple[Graph, Recipe]:
    """The stages of an index of ``videos`` in ``recipe.workspace``, and the recipe with the model's settings.

    Raises:
        FileNotFoundError, ValueError: ``videos`` cannot be used.
    """
    # What decides over the frames is the model's; limits and sizes of the work are the recipe's.
    trained = replace(recipe, model=model.config, frames=model.frames)
    deciding = {name: getattr(model.frames, name) for name in frames_settings(trained)}
    recipe = replace(
        trained,
        data=DataConfig(dataset="captions_file", videos=folder_of_collection(absolute_uri(videos))),
        frames=replace(recipe.frames, **deciding),
        tasks=("retrieval",),
    )
    stages = [collection_stage(videos), frames_stage(recipe), index_stage(recipe, model)]
    return Graph(Storage(recipe.workspace), stages), recipe


def features_pool(workspace: Storage, name: str) -> ShardPool:
    """The shards of an index, by the name that :data:`CURRENT` gives."""
    return ShardPool(workspace.folder("shards", name), FEATURES)


def index_stage(recipe: Recipe, model: SearchModel) -> Stage:
    """Encodes every video with frames that is not in the pool yet, and builds the first pass over all."""
    pool_name = f"features-{digest({'model': model.digest, 'frames': frames_settings(recipe)})}"

    def missing(inputs: Mapping[str, Artifact], pool: ShardPool, since: int) -> pa.Table:
        rows = _wanted(inputs)
        return rows.filter(pc.invert(pc.is_in(rows.column("key"), pool.index(since=since).column("key"))))

    def partial(inputs: Mapping[str, Artifact], output: Storage) -> str | None:
        pool = features_pool(Storage(recipe.workspace), pool_name)
        since, _ = pool.generations(output, forced=False)
        total, left = int(inputs["frames"].counts["rows"]), len(missing(inputs, pool, since))
        return f"{total - left:,} of {total:,} videos are done" if left < total else None

    def run(context: StageContext) -> Counts:
        pool = features_pool(context.workspace, pool_name)
        since, generation = pool.generations(context.output, forced=context.forced)
        _copy_model(model, context.output)
        left = missing(context.inputs, pool, since)
        work = _encode(context, recipe, left, pool, generation)
        found = newest_rows(pool.index(["video_id", "coarse"], since=since))
        rows = _wanted(context.inputs)
        _commit(context.output, found, rows)
        return {"rows": len(rows), "errors": 0, "new": len(left), **work.counts("frames")}

    return Stage(
        name="index",
        version=1,
        settings={"model": model.digest, "frames": frames_settings(recipe)},
        inputs=("manifest", "frames"),
        run=run,
        partial=partial,
        lost=lambda artifact: features_pool(Storage(recipe.workspace), pool_name).lost_words(artifact.storage),
        writes=pool_name,
    )


def _wanted(inputs: Mapping[str, Artifact]) -> pa.Table:
    """The videos that have frames: where these lie, and what the manifest says."""
    frames = inputs["frames"].storage.read_table(INDEX_FILE, columns=["video_id", "key", "shard", "row"])
    manifest = inputs["manifest"].storage.read_table(MANIFEST_FILE, columns=["key", "uri", "start_s", "end_s"])
    # Neighbours in a shard of frames are encoded together, so that few shards are opened.
    return frames.join(manifest, "key", join_type="inner").sort_by([("shard", "ascending"), ("row", "ascending")])


def _copy_model(model: SearchModel, output: Storage) -> None:
    from pipelines.train.checkpoints import save_model
    from pipelines.train.initial_weights import load_checkpoint

    with TemporaryDirectory() as scratch, TemporaryDirectory() as saved:
        loaded = load_checkpoint(model.checkpoint, model.config, Path(scratch))
        save_model(Path(saved), loaded, kind="retrieval", config=loaded.config)
        (Path(saved) / FRAMES_JSON).write_text(json.dumps(plain(model.frames), indent=2) + "\n")
        output.upload(Path(saved), MODEL)


def _encode(context: StageContext, recipe: Recipe, left: pa.Table, pool: ShardPool, generation: int) -> Work:
    from pipelines.search.features import EncodeShard

    config: IndexingConfig = recipe.indexing
    work, total = Work(), int(context.inputs["frames"].counts["rows"])
    with Progress("index", total=total, unit="videos", done=total - len(left)) as progress:
        for row in map_shards(
            split_shards(left, config.videos_per_shard),
            EncodeShard,
            constructor={
                "model": context.output.folder(MODEL),
                "frames_pool": frames_pool(context.workspace, recipe),
                "pool": pool,
                "generation": generation,
                "batch_size": config.batch_size,
            },
            name="index",
            resources=recipe.resources.index,
        ):
            work.add(row)
            progress.advance(row["rows"])
    return work


def _commit(output: Storage, found: pa.Table, rows: pa.Table) -> None:
    """Writes the first pass and, in its order, where every video lies."""
    import numpy as np

    from pipelines.search.first_pass import FirstPass

    found = found.filter(pc.is_in(found.column("key"), rows.column("key"))).sort_by("video_id")
    require(len(found) > 0, "no video of the collection could be used; the errors table of the stage frames says why")
    vectors = found.column("coarse").combine_chunks()
    matrix = np.reshape(vectors.flatten().to_numpy(), (len(found), -1))
    output.write_bytes(VECTORS, FirstPass.build(matrix).to_bytes())
    places = pc.index_in(found.column("key"), rows.column("key"))
    index = found.drop_columns(["coarse"])
    rows = rows.rename_columns({"shard": "frames_shard", "row": "frames_row"})
    for name in ("uri", "start_s", "end_s", "frames_shard", "frames_row"):
        index = index.append_column(name, rows.column(name).take(places))
    output.write_table(INDEX_FILE, index)


@dataclass(frozen=True, slots=True)
class Segment:
    """A video file, or the part ``[start_s, end_s)`` of one."""

    uri: str
    start_s: float | None = None
    end_s: float | None = None


def read_current(root: Storage) -> dict[str, str]:
    """What :func:`publish` wrote.

    Raises:
        FileNotFoundError: there is no finished index.
        DamagedFileError: something else wrote it.
    """
    if not root.exists(CURRENT):
        raise FileNotFoundError(
            f"{root.place()} holds no finished index; make one: python -m jobs.index --index {root.place()} …"
        )
    document = root.read_json(CURRENT)
    if not isinstance(document, dict) or not {"artifact", "features", "frames"} <= document.keys():
        raise DamagedFileError(f"{root.place(CURRENT)} is not what jobs.index writes; run it again")
    return {name: str(value) for name, value in document.items()}


def find_segment(index: str, video_id: str) -> Segment:
    """The file of a video of an index.

    Raises:
        FileNotFoundError: there is no finished index.
        ValueError: it has no such video.
    """
    root = Storage(index)
    columns = ["video_id", "uri", "start_s", "end_s"]
    table = root.folder(read_current(root)["artifact"]).read_table(INDEX_FILE, columns=columns)
    found = table.filter(pc.equal(table.column("video_id"), video_id)).drop_columns(["video_id"]).to_pylist()
    require(
        bool(found),
        f"{index} has no video {video_id!r}; give an id that jobs.search --json prints, or leave out --index",
    )
    return Segment(**found[0])


def publish(graph: Graph) -> None:
    """Makes searches use the index that ``graph`` has made; running ones keep what they have.

    The document names the artifact, and the pools of features and of frames.
    """
    stages = {stage.name: stage for stage in graph.stages}
    graph.workspace.write_json(
        CURRENT,
        {
            "artifact": f"index/{graph.fingerprints['index']}",
            "features": stages["index"].writes,
            "frames": stages["frames"].writes,
        },
    )
