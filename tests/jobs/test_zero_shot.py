"""Search and evaluation by a pretrained encoder without any training, as a user runs them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hbi_models.clip.configs import ClipConfig
from hbi_models.clip.loading import load_clip
from hbi_models.metrics import text_to_video_ranks
from hbi_models.zero_shot import ZeroShotModel
from hbi_models.zero_shot_config import ZeroShotConfig
from jobs.evaluate_retrieval import main as evaluate
from jobs.index import main as index
from pipelines.evaluate.zero_shot import evaluate_zero_shot
from pipelines.models.encoding import encode_texts, encode_videos
from pipelines.models.folder import DESCRIPTION, MODEL
from pipelines.recipe.data import DataConfig, ShapesConfig
from pipelines.recipe.evaluation import EvaluationConfig
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.report import ReportConfig
from pipelines.recipe.resources import ActorResources
from pipelines.search.searcher import Searcher
from pipelines.serve.engine import Engine
from pipelines.serve.errors import UnusableVideoError
from pipelines.splits import SplitView
from pipelines.stages.zero_shot import zero_shot_stage
from pipelines.tracker import StageTracker
from pipelines.video.frame_store import FrameStore
from pipelines.workspace.records import INDEX_FILE
from pipelines.workspace.storage import Storage
from tests.search_index import IN_PLACE, OPTIONS, write_videos
from tests.tiny_retrieval import MAX_FRAMES, write_architecture, write_split_data

VIDEOS, CPU = 6, torch.device("cpu")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> ClipConfig:
    """A tiny encoder with weights in a file."""
    folder = tmp_path_factory.mktemp("encoder")
    config = ClipConfig(architecture=write_architecture(folder), pretrained=None)
    torch.manual_seed(0)
    torch.save(load_clip(config).state_dict(), folder / "weights.pt")
    return replace(config, pretrained=str(folder / "weights.pt"))


def model(clip: ClipConfig, pooling: Any = "mean") -> ZeroShotModel:
    return ZeroShotModel(ZeroShotConfig(clip=clip, max_frames=MAX_FRAMES, pooling=pooling)).eval()


def test_an_index_without_training_ranks_as_the_encoder_does_and_has_no_map(clip: ClipConfig, tmp_path: Path) -> None:
    videos, folder = write_videos(tmp_path / "shapes", VIDEOS), tmp_path / "made"
    encoder = ["--encoder", clip.architecture, "--pretrained", str(clip.pretrained), "--pooling", "softmax"]
    places = ["--videos", str(videos), "--index", str(folder), "--frames.fps", "4"]
    sizes = ["--frames.max_frames", str(MAX_FRAMES), "--model.max_frames", str(MAX_FRAMES)]
    assert index([*encoder, *places, *sizes, *OPTIONS, *IN_PLACE]) == 0
    searcher = Searcher(str(folder))
    assert len(searcher) == VIDEOS
    # The index brings the encoder along: its file may be gone.
    assert searcher.artifact.folder(MODEL).read_json(DESCRIPTION)["kind"] == "zero_shot"
    table = searcher.artifact.read_table(INDEX_FILE)
    frames = table.select(["video_id", "key", "frames_shard", "frames_row"])
    store = FrameStore(searcher._frames_pool, frames.rename_columns(["video_id", "key", "shard", "row"]))
    own = model(clip, "softmax")
    queries = ["a red circle moves left", "a square"]
    with torch.inference_mode():
        texts = encode_texts(own, queries, device=CPU, batch_size=8, num_levels=1)
        clips = encode_videos(own, store, range(VIDEOS), device=CPU, batch_size=8, num_levels=1)
        expected = own.similarity(texts, clips)
    for row, matches in enumerate(searcher.search(queries, top=VIDEOS)):
        scores = {match.video_id: match.score for match in matches}
        by_id = dict(zip(table.column("video_id").to_pylist(), expected[row].tolist(), strict=True))
        # Features are stored in half precision.
        assert scores == pytest.approx(by_id, abs=2e-3)
        assert list(scores.values()) == sorted(scores.values(), reverse=True)
        assert all(0 <= match.moment.first < match.moment.stop <= match.frames for match in matches)
    assert not searcher.explains
    with pytest.raises(ValueError, match="pretrained encoder alone"):
        searcher.interaction("a circle", searcher.clip(table.column("video_id")[0].as_py()))
    engine = Engine(str(folder), None, kept_uploads=1)
    assert engine.status()["maps"] is False
    with pytest.raises(UnusableVideoError, match="no interaction of words and frames"):
        engine.interaction("a circle", table.column("video_id")[0].as_py())
    first = engine.search(["a circle"], [1])[0].matches[0]
    content = next(videos.glob("*.mp4")).read_bytes()
    assert engine.upload(content).end_s > 0 and first.frames >= 1


def test_one_of_checkpoint_and_encoder_is_needed(clip: ClipConfig, tmp_path: Path) -> None:
    places = ["--videos", str(tmp_path), "--index", str(tmp_path / "made")]
    with pytest.raises(ValueError, match="give --checkpoint, or --encoder with --pretrained"):
        index([*places, "--encoder", clip.architecture])
    for given in (["--encoder", clip.architecture], ["--tokenizer", "mine.json", "--pooling", "mean"]):
        with pytest.raises(ValueError, match=f"says which encoder it has; leave out {' and '.join(given[::2])}$"):
            index([*places, *given, "--checkpoint", str(tmp_path)])
    with pytest.raises(ValueError, match=r"clip\.pretrained is 'no_such_tag'"):
        index([*places, "--encoder", "ViT-B-32-quickgelu", "--pretrained", "no_such_tag"])
    assert not (tmp_path / "made").exists() or not list((tmp_path / "made").glob("frames*"))


def test_the_evaluation_is_that_of_the_encoder(clip: ClipConfig, tmp_path: Path) -> None:
    captions = (2, 1, 3, 1, 2)
    data = write_split_data(tmp_path, {"test": captions})
    view = SplitView(data.folder("manifest"), data.folder("frames"), data.folder("pool"), "test")
    output = Storage(str(tmp_path / "out"))
    # Tiles smaller than the split.
    settings = EvaluationConfig(tile=2, batch_size=2, bootstrap_samples=20)
    config = ZeroShotConfig(clip=clip, max_frames=MAX_FRAMES)
    resources = ActorResources(max_actors=0)
    found = evaluate_zero_shot(
        output, StageTracker(), view, config=config, settings=settings, resources=resources, seed=1
    )
    texts, owners, _ = view.texts_of(range(len(view)))
    document = output.read_json("metrics.json")
    assert (document["texts"], document["videos"], document["architecture"]) == (9, 5, clip.architecture)
    for pooling in ("mean", "softmax"):
        own = model(clip, pooling)
        with torch.inference_mode():
            words = encode_texts(own, texts, device=CPU, batch_size=8, num_levels=1)
            clips = encode_videos(own, view.store, range(5), device=CPU, batch_size=8, num_levels=1)
            ranks = text_to_video_ranks(own.similarity(words, clips), torch.tensor(owners))
        assert found[f"{pooling}/text_to_video/mean_rank"] == pytest.approx(ranks.double().mean().item())
        assert document[pooling]["text_to_video"]["recall_at_1"]["value"] == pytest.approx(
            100 * (ranks == 1).double().mean().item()
        )


def test_the_stage_depends_on_encoder_and_split_alone_and_needs_pretrained_weights(
    clip: ClipConfig, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shapes = DataConfig(shapes=ShapesConfig(train_videos=30))
    recipe = Recipe(data=shapes, report=ReportConfig(enabled=False))
    recipe = replace(recipe, model=replace(recipe.model, clip=clip))
    before = zero_shot_stage(recipe).settings
    others = replace(recipe.model, level_rates=(0.0, 1.0, 1.0), clip=replace(clip, train="last_layers"))
    assert zero_shot_stage(replace(recipe, model=others)).settings == before
    softer = replace(recipe, evaluation=replace(recipe.evaluation, split="val"))
    assert zero_shot_stage(softer).settings != before
    with pytest.raises(ValueError, match=r"model\.clip\.pretrained of .* is null"):
        zero_shot_stage(replace(recipe, model=replace(recipe.model, clip=replace(clip, pretrained=None))))
    options = ["--data.shapes.train_videos", "30", "--model.clip.architecture", clip.architecture]
    options += ["--model.clip.pretrained", str(clip.pretrained), "--workspace", str(tmp_path / "workspace")]
    assert evaluate([*options, "--zero_shot", "--plan"]) == 0
    lines = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line]
    assert [name for name in lines if name in ("manifest", "frames", "zero_shot", "retrieval")] == [
        *("manifest", "frames", "zero_shot"),
    ]
