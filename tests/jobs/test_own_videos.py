"""Twenty clips and a CSV through the recipe for one's own videos, with a small encoder in the place of CLIP's."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from hbi_models.clip.configs import ClipConfig
from hbi_models.clip.loading import load_clip
from jobs.run import main
from pipelines.models.weights import load_model
from pipelines.recipe.data import ShapesConfig
from pipelines.shapes.captions import draw_captions
from pipelines.shapes.data_set import video_id
from pipelines.shapes.events import draw_script
from pipelines.workspace.storage import Storage
from tests.mlflow_database import copy_database
from tests.search_index import write_videos
from tests.tiny_retrieval import IMAGE_PX, write_architecture

RECIPE = Path(__file__).parents[2] / "jobs/recipes/own_videos.yaml"
CLIPS = 20


def write_captions(folder: Path) -> Path:
    """Writes the captions of the clips that ``write_videos`` makes, two each."""
    config = ShapesConfig(train_videos=CLIPS, test_videos=1, image_size_px=32, duration_s=2.0)
    path = folder / "captions.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "caption"])
        for number in range(CLIPS):
            for caption in draw_captions(config, draw_script(config, number))[:2]:
                writer.writerow([f"{video_id(number)}.mp4", caption.text])
    return path


@pytest.mark.long
def test_a_trained_model_stands_beside_the_frozen_encoder_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos, workspace = write_videos(tmp_path / "shapes", CLIPS), tmp_path / "workspace"
    clip = ClipConfig(architecture=write_architecture(tmp_path), pretrained=None)
    torch.manual_seed(0)
    pretrained = load_clip(clip).state_dict()
    torch.save(pretrained, tmp_path / "weights.pt")
    copy_database(workspace)
    options = {
        "workspace": workspace,
        "data.annotations": write_captions(tmp_path),
        "data.videos": videos,
        "data.validation_videos": 4,
        "retrieval.batch_size": 8,
        "retrieval.epochs": 2,
        "model.clip.architecture": clip.architecture,
        "model.clip.pretrained": tmp_path / "weights.pt",
        "model.temporal.layers": 1,
        "model.max_words": 16,
        "frames.short_side_px": IMAGE_PX,
        "frames.fps": 4,
        "resources.retrieval.workers": 0,
        "resources.evaluation.max_actors": 0,
        "resources.decode.max_tasks": 0,
        "resources.features.max_actors": 0,
        "report.figures": 0,
    }
    line = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    assert main(["--config", str(RECIPE), *line]) == 0
    printed = capsys.readouterr().out
    assert "mean over frames" in printed and "softmax over frames" in printed
    storage = Storage(str(workspace))
    (trained,), (alone,) = (storage.folders(stage) for stage in ("evaluation", "zero_shot"))
    trained_videos = storage.read_json(f"evaluation/{trained}/metrics.json")["videos"]
    assert trained_videos == storage.read_json(f"zero_shot/{alone}/metrics.json")["videos"] > 0
    (page,) = storage.folders("report")
    shown = storage.read_bytes(f"report/{page}/index.html").decode()
    assert "text → video, encoder without training, mean over frames" in shown
    (model,) = storage.folders("retrieval")
    loaded = load_model(storage.folder("retrieval", model, "model"), tmp_path).clip.state_dict()
    for name, value in pretrained.items():
        assert name == "logit_scale" or torch.equal(loaded[name], value), name
