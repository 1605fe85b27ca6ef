from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hbi_models.published_weights import retrieval_to_published
from hbi_models.retrieval import RetrievalModel
from jobs import draw
from pipelines.models.folder import FRAMES_JSON
from pipelines.models.weights import save_model
from pipelines.recipe.data import ShapesConfig
from pipelines.recipe.frames import FramesConfig
from pipelines.shapes.data_set import write_clips
from pipelines.workspace.artifact import plain
from pipelines.workspace.storage import Storage
from tests.jobs.recipes import write_recipe
from tests.tiny_retrieval import IMAGE_PX, MAX_FRAMES, retrieval_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder, the same in a published file, and a clip."""
    folder = tmp_path_factory.mktemp("draw")
    torch.manual_seed(0)
    model = RetrievalModel(retrieval_config(folder))
    (folder / "model").mkdir()
    save_model(folder / "model", model, kind="retrieval", config=model.config)
    frames = FramesConfig(fps=4, max_frames=MAX_FRAMES, short_side_px=IMAGE_PX)
    Storage(str(folder / "model")).write_json(FRAMES_JSON, plain(frames))
    torch.save(retrieval_to_published(model.state_dict()), folder / "published.bin")
    write_clips(ShapesConfig(train_videos=1, test_videos=1, image_size_px=32), [0], Storage(str(folder)))
    return folder


def run(folder: Path, **options: str) -> int:
    base = {"checkpoint": str(folder / "model"), "video": str(folder / "videos" / "video0.mp4"), "text": "a star falls"}
    return draw.main([part for name, value in {**base, **options}.items() for part in (f"--{name}", value)])


@pytest.fixture(scope="module")
def drawn(folder: Path) -> Path:
    """What a run without options wrote."""
    assert run(folder, output=str(folder / "exact")) == 0
    return folder / "exact"


def test_pictures_and_numbers_lie_in_the_folder(drawn: Path) -> None:
    names = {f"{figure}_exact.{ending}" for figure in ("hierarchy", "heat_maps") for ending in ("png", "svg")}
    assert {path.name for path in drawn.iterdir()} == {*names, "interaction.json"}
    document = json.loads((drawn / "interaction.json").read_text())
    assert [token["text"] for token in document["tokens"]] == ["⟨start⟩", "a", "star", "falls", "⟨end⟩"]
    assert [token["special"] for token in document["tokens"]] == [True, False, False, False, True]
    assert [level["level"] for level in document["levels"]] == ["entity", "action", "event"]
    assert document["frames"][0]["time_s"] == 0


def test_a_second_run_writes_the_same_bytes_and_says_where(
    folder: Path, drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(folder, output=str(folder / "second"))
    assert {Path(line) for line in capsys.readouterr().out.split()} == {*(folder / "second").iterdir()}
    for path in drawn.iterdir():
        assert path.read_bytes() == (folder / "second" / path.name).read_bytes(), path.name


def test_a_published_file_is_drawn_with_its_recipe(folder: Path, drawn: Path) -> None:
    published = str(folder / "published.bin")
    with pytest.raises(ValueError, match="give the recipe that says its model and frames"):
        run(folder, checkpoint=published, output=str(folder / "refused"))
    recipe = write_recipe(folder)
    run(folder, checkpoint=published, config=str(recipe), output=str(folder / "published"))
    ours, theirs = (json.loads((place / "interaction.json").read_text()) for place in (drawn, folder / "published"))
    assert theirs["levels"] == ours["levels"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"video": "nowhere.mp4"}, FileNotFoundError, "no file at .*nowhere.mp4"),
        ({"video": "{folder}/published.bin"}, ValueError, r"published\.bin cannot be used \(undecodable\)"),
        ({"text": " "}, ValueError, "the text is empty; say something about the video"),
        ({"show": "[sampled]"}, ValueError, "sampled cannot be shown; choose among exact, estimator, difference"),
        ({"show": "[estimator]"}, ValueError, "trained without one; give one with --estimator_checkpoint"),
        ({"checkpoint": "nowhere"}, FileNotFoundError, "neither a folder with model.json nor a published file"),
        ({"estimator_checkpoint": "{folder}/model"}, ValueError, "a model of kind 'retrieval'; an estimator is needed"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    folder: Path, options: dict[str, str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(folder, **{name: value.format(folder=folder) for name, value in options.items()})
