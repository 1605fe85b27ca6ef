"""Landmarks of local places; nodes that do not see them are in tests/cluster."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hbi_models.clip.configs import ClipConfig
from hbi_models.configs import RetrievalConfig
from pipelines.graph import make_evaluation_graph, make_graph
from pipelines.recipe.data import DataConfig, ShapesConfig
from pipelines.recipe.labels import LabelsConfig
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.training import RetrievalTrainingConfig
from pipelines.resources.placement import Landmark, PlacementError, find_landmarks, require_lasting
from pipelines.stages.places import places_of
from pipelines.workspace.storage import Storage

WORKSPACE, VIDEO = "workspace", "videos/one.mp4"


@pytest.fixture
def own_videos(tmp_path: Path) -> Recipe:
    """The user's own captions file, beside its videos."""
    (tmp_path / VIDEO).parent.mkdir()
    (tmp_path / VIDEO).write_bytes(b"a video")
    captions = tmp_path / "videos/captions.csv"
    captions.write_text("path,caption,split\none.mp4,one,train\n")
    return Recipe(
        workspace=str(tmp_path / WORKSPACE), data=DataConfig(dataset="captions_file", annotations=str(captions))
    )


def _find(recipe: Recipe) -> list[Landmark]:
    graph = make_graph(recipe)
    return find_landmarks(graph.workspace, places_of(graph, recipe))


def landmarks(recipe: Recipe) -> dict[str, Landmark]:
    return {landmark.setting: landmark for landmark in _find(recipe)}


def test_workspace_and_videos_have_a_landmark_that_this_machine_sees(own_videos: Recipe, tmp_path: Path) -> None:
    found = landmarks(own_videos)
    assert found.keys() == {"workspace", "the folder of the videos"}
    assert [landmark.trouble() for landmark in found.values()] == [None, None]
    given = replace(own_videos, data=replace(own_videos.data, videos=str(tmp_path / "videos")))
    assert landmarks(given)["data.videos"].file == str(tmp_path / VIDEO)


def test_a_workspace_keeps_its_landmark(own_videos: Recipe) -> None:
    assert landmarks(own_videos)["workspace"] == landmarks(own_videos)["workspace"]


def test_a_place_that_is_gone_or_another_one_is_troubled(own_videos: Recipe, tmp_path: Path) -> None:
    found = landmarks(own_videos)
    identity = Path(found["workspace"].file)
    # A folder of the same name, in which another machine has worked.
    identity.write_text(identity.read_text().replace('"id": "', '"id": "0')[:-1])
    assert found["workspace"].trouble() == f"has another file at {identity}"
    identity.unlink()
    assert found["workspace"].trouble() == "does not see it"


def test_a_workspace_that_cannot_be_written_is_troubled(own_videos: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    found = landmarks(own_videos)

    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    # The account of the tests may write everywhere.
    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    assert found["workspace"].trouble() == "cannot use it (Permission denied)"
    assert found["the folder of the videos"].trouble() is None, "videos are only read"


@pytest.mark.slow
def test_generated_videos_and_object_stores_need_no_landmark(tmp_path: Path, s3_bucket: str) -> None:
    shapes = DataConfig(shapes=ShapesConfig(train_videos=1, test_videos=1))
    assert landmarks(Recipe(workspace=str(tmp_path), data=shapes)).keys() == {"workspace"}
    assert not landmarks(Recipe(workspace=f"{s3_bucket}/placement", data=shapes))


def test_checkpoints_in_files_have_a_landmark_and_names_have_none(own_videos: Recipe, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "model.json").write_text("{}")
    (checkpoint / "model.safetensors").write_text("weights")
    recipe = replace(
        own_videos,
        labels=LabelsConfig(checkpoint=str(checkpoint)),
        retrieval=RetrievalTrainingConfig(init_checkpoint=str(checkpoint)),
        model=RetrievalConfig(clip=ClipConfig(architecture="shapes-tiny", pretrained="openai")),
    )
    found = landmarks(recipe)
    assert {"labels.checkpoint", "retrieval.init_checkpoint"} < found.keys()
    assert not any(setting.startswith("model.clip") for setting in found)


def test_a_workspace_in_the_folder_of_a_job_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    require_lasting(Storage("workspace"))
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(PlacementError, match=r"Ray removes that after the job; give a URI"):
        require_lasting(Storage("workspace"))
    require_lasting(Storage(str(tmp_path.parent / "elsewhere")))
    # The endpoint saves the question where the bucket is.
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    require_lasting(Storage("s3://bucket/workspace"))


@pytest.mark.parametrize("name", ["a b", "a#b", "what?", "100%", "a%20b", "ü"])
def test_places_are_known_however_they_are_written(
    own_videos: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    file = tmp_path / name / "pytorch_model.bin"
    file.parent.mkdir()
    file.write_bytes(b"weights")
    graph = make_graph(own_videos)
    started = replace(own_videos, retrieval=RetrievalTrainingConfig(init_checkpoint=file.as_uri()))
    places = dict(places_of(graph, started))
    assert places["retrieval.init_checkpoint"] == file.as_uri()
    found = {item.setting: item.file for item in find_landmarks(graph.workspace, places.items())}
    assert found["retrieval.init_checkpoint"] == str(file)
    # What came with a submitted job is a copy on every node.
    monkeypatch.chdir(file.parent)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    settings = {item.setting for item in find_landmarks(graph.workspace, places.items())}
    assert settings == {"workspace", "the folder of the videos"}


def test_the_checkpoint_that_is_evaluated_has_a_landmark(own_videos: Recipe, tmp_path: Path) -> None:
    checkpoint = tmp_path / "pytorch_model.bin"
    checkpoint.write_bytes(b"weights")
    graph = make_evaluation_graph(own_videos, str(checkpoint))
    found = {item.setting: item for item in find_landmarks(graph.workspace, places_of(graph, own_videos))}
    assert found["the checkpoint of evaluation"].file == str(checkpoint)
