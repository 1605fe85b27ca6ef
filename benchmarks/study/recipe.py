"""Features of the videos of a recipe, with its own CLIP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from benchmarks.study.features import Split, encode_frames, encode_words
from hbi_models.config_fields import require
from hbi_models.retrieval import RetrievalModel
from pipelines.graph import make_graph
from pipelines.models.initial_weights import initialise_from
from pipelines.models.weights import save_model
from pipelines.progress import Progress
from pipelines.recipe.data import SPLITS
from pipelines.recipe.recipe import Recipe
from pipelines.run import run_plan
from pipelines.splits import SplitView
from pipelines.stages.frames import frames_pool
from pipelines.workspace.storage import Storage

_ENCODED_AT_ONCE = 16


def write_encoder(recipe: Recipe, folder: Path) -> str:
    """Commits the recipe's model with its initial weights, CLIP's among them, as a folder of ours."""
    torch.manual_seed(recipe.seed)
    model = RetrievalModel(recipe.model)
    if recipe.retrieval.init_checkpoint is not None:
        with TemporaryDirectory() as scratch:
            initialise_from(recipe.retrieval.init_checkpoint, model, Path(scratch))
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder, model, kind="retrieval", config=model.config)
    return str(folder)


def recipe_features(recipe: Recipe, model: RetrievalModel) -> dict[str, Split]:
    """Train, validation and test split, in half precision; frames are decoded first where there are none.

    Raises:
        ValueError: there is no validation or test split.
    """
    graph = make_graph(recipe)
    run_plan(graph, graph.plan(until_stage="frames"), recipe)
    manifest, frames = graph.artifact("manifest"), graph.artifact("frames")
    assert manifest is not None and frames is not None
    pool = frames_pool(Storage(recipe.workspace), recipe).storage
    splits = {}
    for name in SPLITS:
        view = SplitView(manifest.storage, frames.storage, pool, name)
        require(len(view) > 0, f"the split {name} holds no video; the study chooses on val and tests on test")
        splits[name] = features_of(view, model, name)
    return splits


def features_of(view: SplitView, model: RetrievalModel, name: str) -> Split:
    """The features of all texts and stored frames of a split."""
    texts, owners, _ = view.texts_of(range(len(view)))
    with Progress(f"features of {name}", total=len(view), unit="videos") as progress:
        return Split(
            # Half precision, which halves the file and the memory of large data sets.
            encode_words(model.clip, texts, model.config.max_words, torch.float16),
            encode_frames(model.clip, _stored(view, model), progress.advance, torch.float16),
            torch.tensor(owners),
        )


def _stored(view: SplitView, model: RetrievalModel) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(view), _ENCODED_AT_ONCE):
        batch = view.store.batch(
            range(start, min(start + _ENCODED_AT_ONCE, len(view))),
            image_size_px=model.clip.image_size_px,
            max_frames=model.config.max_frames,
        )
        yield batch.frames, batch.mask
