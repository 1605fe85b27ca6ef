"""Features that another model made: what the files may hold, what is refused, and that HBI trains on them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hbi_models.axes import TokenFeatures
from hbi_models.configs import GameConfig, TokensConfig
from pipelines.datasets.features_file import GivenFeatures, read_given_videos
from pipelines.datasets.manifest import build_manifest, manifest_digest
from pipelines.graph import make_graph, make_probe_graph
from pipelines.models.given_features import StoreGivenFeatures
from pipelines.recipe.data import DataConfig
from pipelines.recipe.evaluation import EvaluationConfig
from pipelines.recipe.frames import FramesConfig
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.training import AugmentationConfig, RetrievalTrainingConfig
from pipelines.stages.features import GivenFeaturesStage
from pipelines.train.loop import LoopSettings, TrainingLoop
from pipelines.train.pair_task import TrainingData
from pipelines.video.token_store import TokenStore
from pipelines.workspace.artifact import Artifact
from pipelines.workspace.records import INDEX_FILE, MANIFEST_FILE, tokens_schema
from pipelines.workspace.shards import ShardPool
from pipelines.workspace.storage import Storage
from tests.given_features import FRAME_DIM, WORD_DIM, rows_of, write_rows
from tests.tiny_retrieval import MAX_FRAMES, MAX_WORDS, retrieval_config, retrieval_task

CAPTIONS = (2, 1, 3, 1, 2, 1)
COUNTS = {"train": CAPTIONS, "val": (1, 2), "test": (1,)}


def given_recipe(folder: Path, place: Path, **tokens: int) -> Recipe:
    dims = TokensConfig(**{"word_dim": WORD_DIM, "frame_dim": FRAME_DIM, "dim": 16, **tokens})
    return Recipe(
        workspace=str(folder / "workspace"),
        data=DataConfig(features=str(place)),
        model=retrieval_config(folder, tokens=dims, game=GameConfig(teacher="exact", estimator_channels=4)),
        frames=FramesConfig(max_frames=MAX_FRAMES),
        retrieval=RetrievalTrainingConfig(augmentation=AugmentationConfig(enabled=False)),
    )


def stored(folder: Path, recipe: Recipe) -> TrainingData:
    """What the stages manifest and features make of the files."""
    storage = Storage(str(folder / "stored"))
    manifest = build_manifest(recipe.data)
    storage.write_table(f"manifest/{MANIFEST_FILE}", manifest.table)
    artifacts = {"manifest": Artifact("manifest", "", storage.folder("manifest"), {})}
    wanted = GivenFeaturesStage(recipe).wanted(artifacts)
    pool = ShardPool(storage.folder("pool"), tokens_schema("float32"))
    assert recipe.model.tokens is not None
    work = StoreGivenFeatures(recipe.model, recipe.model.tokens, "float32", pool)
    work(wanted.slice(0, 5))
    work(wanted.slice(5))
    storage.write_table(f"features/{INDEX_FILE}", pool.index(["video_id", "bytes"]))
    return TrainingData(
        manifest=storage.folder("manifest"),
        frames=storage.folder("features"),
        frames_pool=storage.folder("pool"),
        store=partial(TokenStore, dtype="float32", max_memory_gb=1.0),
    )


@pytest.mark.parametrize("layout", ["two files", "one file", "a row for a pair"])
def test_any_layout_gives_every_video_and_caption_its_own_tokens(tmp_path: Path, layout: str) -> None:
    videos, captions = rows_of(COUNTS)
    place = tmp_path / "features"
    if layout == "two files":
        write_rows(place / "videos.parquet", videos)
        write_rows(place / "captions.parquet", captions[::-1])
    elif layout == "one file":
        place = tmp_path / "all.parquet"
        write_rows(place, [*captions, *videos], row_group_size=1000)
    else:
        first = {row["video_id"]: row for row in reversed(captions)}
        rest = [row for row in captions if row is not first[row["video_id"]]]
        write_rows(place / "all.parquet", [*({**row, **first[row["video_id"]]} for row in videos), *rest])
    training = stored(tmp_path, given_recipe(tmp_path, place))
    frames = {row["video_id"]: row["frames"] for row in videos}
    words = {row["caption"]: row["words"] for row in captions}
    for split in COUNTS:
        view = training.captions(split)  # type: ignore[arg-type]
        assert isinstance(view.store, TokenStore) and len(view) == len(COUNTS[split])
        assert view.texts_per_video == list(COUNTS[split])
        for video, name in enumerate(view.store.video_ids):
            found = view.store.frames([video], max_frames=MAX_FRAMES)
            np.testing.assert_array_equal(found.features[found.mask].numpy(), np.float32(frames[name]))
            for text in view.texts(video):
                said = view.store.words([(video, text)], max_words=MAX_WORDS)
                np.testing.assert_array_equal(said.features[said.mask].numpy(), np.float32(words[text]))


def test_a_mask_says_which_tokens_are_real_and_a_drawn_split_which_videos_are_tested(tmp_path: Path) -> None:
    videos, captions = rows_of({"train": (1,) * 20})
    for row in videos:
        del row["split"]
        row["frames"] = [*row["frames"], [0.0] * FRAME_DIM]
        row["frame_mask"] = [True] * (len(row["frames"]) - 1) + [False]
        row["times"] = [*row["times"], row["times"][-1]]
    for row in captions:
        del row["caption"]
    write_rows(tmp_path / "features/videos.parquet", videos)
    write_rows(tmp_path / "features/captions.parquet", captions)
    recipe = given_recipe(tmp_path, tmp_path / "features")
    assert {"train", "test"} <= set(build_manifest(recipe.data).table.column("split").to_pylist())
    view = stored(tmp_path, recipe).captions("train")
    assert isinstance(view.store, TokenStore)
    lengths = {row["video_id"]: len(row["frames"]) - 1 for row in videos}
    for video, name in enumerate(view.store.video_ids):
        assert int(view.store.frames([video], max_frames=MAX_FRAMES).mask.sum()) == lengths[name]
        assert view.texts(video) == [f"{name}-0"], "a caption without a text is called by its id"


@pytest.mark.slow
def test_the_head_trains_on_them_and_is_evaluated(tmp_path: Path) -> None:
    videos, captions = rows_of(COUNTS)
    write_rows(tmp_path / "features/all.parquet", [*videos, *captions])
    recipe = given_recipe(tmp_path, tmp_path / "features")
    plain = AugmentationConfig(enabled=False)
    task = retrieval_task(Storage(str(tmp_path)), recipe.model, CAPTIONS, epochs=8, augmentation=plain)
    task = replace(task, data=stored(tmp_path, recipe))
    points: list[Any] = []

    class Recorder:
        def metrics(self, step: int, metrics: Any) -> None:
            points.append(metrics)

        def checkpoint(self, folder: Path | None, score: float) -> None:
            pass

    settings = LoopSettings(log_every_steps=1)
    loop = TrainingLoop(task, device=torch.device("cpu"), reporter=Recorder(), settings=settings)
    groups = {group["name"] for group in loop.optimizer.param_groups}
    assert groups == {"head_decay", "head_no_decay"}, "there is no CLIP"
    before = loop.core.state_dict()["tokens.words.1.weight"].clone()
    model = loop.run()
    assert not torch.equal(model.state_dict()["tokens.words.1.weight"], before), "the projections are learnt"
    losses = [point["train/loss"] for point in points if "train/loss" in point]
    assert losses[-1] < losses[0]
    with pytest.raises(ValueError, match="features that another model made of captions"):
        model.text_batch(["a"])  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"the words have 7 channels and model\.tokens says 12"):
        model.encode_text(TokenFeatures(torch.zeros(1, 2, 7), torch.ones(1, 2, dtype=torch.bool)))  # type: ignore[operator]


def test_the_graph_needs_no_video(tmp_path: Path) -> None:
    videos, captions = rows_of(COUNTS)
    place = tmp_path / "features/all.parquet"
    write_rows(place, [*videos, *captions])
    recipe = given_recipe(tmp_path, place)
    graph = make_graph(recipe)
    assert [stage.name for stage in graph.stages] == ["manifest", "features", "retrieval", "evaluation"]
    before = manifest_digest(recipe.data)
    videos[0]["frames"][0][0] += 1
    write_rows(place, [*videos, *captions])
    assert manifest_digest(recipe.data) != before
    assert make_graph(recipe).fingerprints["features"] != graph.fingerprints["features"]
    with pytest.raises(ValueError, match=r"a zero-shot evaluation is of CLIP on videos, but model\.tokens"):
        make_graph(replace(recipe, evaluation=EvaluationConfig(zero_shot=True)))
    with pytest.raises(ValueError, match="a probe looks at videos and words, which such features do not show"):
        make_probe_graph(recipe)


def change(rows: list[dict[str, Any]], place: int, **values: Any) -> None:
    rows[place] = {**rows[place], **values}


REFUSED_NAMES = {
    "no frames": (lambda v, c: v.pop(0), r"1 videos have captions and no frames: train0"),
    "twice": (lambda v, c: v.append(v[0]), r"row group \d+, row \d+: video 'train0' has frames already"),
    "split": (lambda v, c: change(v, 1, split="dev"), "split 'dev' is unknown; use one of train, val, test"),
    "some splits": (lambda v, c: change(v, 1, split=None), "1 videos have no split and 8 have one"),
    "id": (lambda v, c: change(v, 1, video_id="../x"), "video_id '../x' is not allowed"),
    "caption twice": (lambda v, c: c.append(c[0]), "video 'train0' has the caption 'caption 0 of train0' twice"),
}


@pytest.mark.parametrize("case", REFUSED_NAMES)
def test_names_that_contradict_one_another_are_refused(tmp_path: Path, case: str) -> None:
    alter, message = REFUSED_NAMES[case]
    videos, captions = rows_of(COUNTS)
    alter(videos, captions)
    write_rows(tmp_path / "videos.parquet", videos)
    write_rows(tmp_path / "captions.parquet", captions)
    with pytest.raises(ValueError, match=message):
        read_given_videos(str(tmp_path))


def test_files_without_the_columns_or_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no such file or folder"):
        read_given_videos(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"a folder without a file NAME\.parquet"):
        read_given_videos(str(tmp_path))
    write_rows(tmp_path / "a.parquet", [{"id": "x", "frames": [[1.0]]}])
    with pytest.raises(ValueError, match="has no column video_id; it has id, frames"):
        read_given_videos(str(tmp_path))
    write_rows(tmp_path / "a.parquet", [{"video_id": "x", "words": [[1.0]]}])
    with pytest.raises(ValueError, match="has words and no column caption_id"):
        read_given_videos(str(tmp_path))
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read as Parquet"):
        read_given_videos(str(tmp_path))


NAN, WIDE = float("nan"), [[1.0] * (FRAME_DIM + 1)] * 2
REFUSED_NUMBERS: dict[str, tuple[dict[str, Any], str]] = {
    "channels": (
        {"frames": WIDE, "times": None},
        r"have 21 channels, and model\.tokens\.frame_dim is 20; set it to 21",
    ),
    "ragged": ({"frames": [[1.0] * 20, [1.0] * 19], "times": None}, "have tokens of 19, 20 channels"),
    "flat": ({"frames": [1.0] * 20, "times": None}, "a list of tokens is needed, each a list of floating-point"),
    "null": ({"frames": [None, [1.0] * 20], "times": None}, "hold a token that is null"),
    "not finite": ({"frames": [[1.0] * 20, [NAN] * 20], "times": None}, r"not finite, the first in token 1"),
    "mask": ({"frame_mask": [True] * 9}, r"frame_mask of .* has 9 entries for \d tokens"),
    "nothing real": ({"frames": [[1.0] * 20], "frame_mask": [False], "times": None}, "has no real frames"),
    "too many": (
        {"frames": [[1.0] * 20] * 9, "times": None},
        r"has 9 frames, and the model takes 6; raise model\.max_fr",
    ),
    "times": ({"frames": [[1.0] * 20] * 2, "times": [0.0]}, "times of .* has 1 entries for 2 frames"),
    "falling times": ({"frames": [[1.0] * 20] * 2, "times": [1.0, 0.0]}, "not finite seconds that never fall"),
}


@pytest.mark.parametrize("case", REFUSED_NUMBERS)
def test_numbers_that_cannot_be_used_are_refused_with_their_place(tmp_path: Path, case: str) -> None:
    values, message = REFUSED_NUMBERS[case]
    videos, _ = rows_of({"train": (1,)})
    change(videos, 0, **values)
    write_rows(tmp_path / "videos.parquet", videos)
    place = read_given_videos(str(tmp_path))["train0"].frames
    assert place is not None
    read = GivenFeatures(word_dim=WORD_DIM, frame_dim=FRAME_DIM)
    with pytest.raises(ValueError, match=message) as raised:
        read("frames", place, name="the video train0", most=MAX_FRAMES)
    assert "train0" in str(raised.value) and "videos.parquet" in str(raised.value)


def test_settings_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    recipe = given_recipe(tmp_path, tmp_path)
    with pytest.raises(ValueError, match=r"data\.features and model\.tokens go together"):
        replace(recipe, data=DataConfig())
    with pytest.raises(ValueError, match=r"there is none; set model\.game\.teacher to exact or none"):
        replace(recipe, model=replace(recipe.model, game=GameConfig(teacher="estimator")))
    with pytest.raises(ValueError, match=r"takes the place of a data set; leave data\.videos unset"):
        DataConfig(features="f", videos="v")
