"""An exported folder: what it holds, what its card says of the run, and that it works elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from hbi_models.model_files import ARCHITECTURE, HUB_DESCRIPTION, WEIGHTS
from hbi_models.retrieval import RetrievalModel
from hbi_models.video_qa import VideoQAModel
from jobs.export import main
from pipelines.datasets.answers import ANSWERS_JSON
from pipelines.models.folder import FRAMES_JSON, LEFT_OUT, kind_of_model, model_folder, vocabulary_of
from pipelines.models.initial_weights import load_checkpoint
from pipelines.models.weights import save_model
from pipelines.report.hub_folder import export_model
from pipelines.search.search_model import read_search_model
from pipelines.stages.settings import given_model
from pipelines.workspace.artifact import plain
from pipelines.workspace.records import MANIFEST_FILE
from pipelines.workspace.storage import Storage
from tests.hbi_models.tiny_model import tiny_video_qa_config
from tests.pipelines.report.run import finished_run, report_recipe

STAGES = ("manifest", "frames", "retrieval", "evaluation")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of a finished run, in the workspace where a run leaves it; its architecture's file is gone."""
    folder = tmp_path_factory.mktemp("run")
    recipe = report_recipe(folder)
    finished_run(recipe)
    workspace = Storage(recipe.workspace)
    inputs = {"retrieval": {"manifest": "0manifest"}, "evaluation": {"retrieval": "0retrieval"}}
    for stage in STAGES:
        shutil.move(workspace.path(stage), workspace.path(f"moved-{stage}"))
        workspace.folder(stage)
        Path(workspace.path(stage)).mkdir()
        shutil.move(workspace.path(f"moved-{stage}"), workspace.path(stage, f"0{stage}"))
        workspace.write_json(
            f"{stage}/0{stage}/artifact.json",
            {
                "stage": stage,
                "version": 1,
                "settings": {},
                "inputs": inputs.get(stage, {}),
                "counts": {},
                "versions": {"python": "3.11"},
                "config": plain(recipe),
                "finished_at": "2026-01-02T03:04:05+00:00",
            },
        )
    assert workspace.exists(f"manifest/0manifest/{MANIFEST_FILE}")
    made = workspace.folder("retrieval/0retrieval/model")
    made.write_json(FRAMES_JSON, plain(recipe.frames))
    (folder / "tiny-clip.json").unlink()
    return Path(made.path())


@pytest.fixture(scope="module")
def exported(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "shapes-hbi"
    assert main(["--checkpoint", str(model), "--output", str(folder), "--license", "apache-2.0"]) == 0
    return folder


@pytest.mark.slow
def test_the_folder_loads_bit_for_bit_elsewhere(model: Path, exported: Path) -> None:
    assert {file.name for file in exported.iterdir()} == {
        *(HUB_DESCRIPTION, WEIGHTS, ARCHITECTURE, FRAMES_JSON, "README.md")
    }
    assert (exported / WEIGHTS).read_bytes() == (model / WEIGHTS).read_bytes()
    loaded, expected = RetrievalModel.from_pretrained(exported), RetrievalModel.from_pretrained(model)
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in loaded.state_dict().items())
    texts = ["a red circle moves left", "blue"]
    with torch.inference_mode():
        one, other = (each.encode_text(each.text_batch(texts))[0].features for each in (loaded, expected))
    assert torch.equal(one, other)


def test_nothing_in_it_names_this_machine(model: Path, exported: Path) -> None:
    for name in (HUB_DESCRIPTION, "README.md", ARCHITECTURE, FRAMES_JSON):
        assert str(model.parents[3]) not in (exported / name).read_text()


def test_jobs_take_it_as_a_checkpoint(exported: Path, tmp_path: Path) -> None:
    recipe = report_recipe(tmp_path)
    searched = read_search_model(str(exported), recipe)
    assert searched.frames == recipe.frames
    assert set(given_model(str(exported), None)) == {"checkpoint"}
    evaluated = load_checkpoint(str(exported), recipe.model, tmp_path)
    assert evaluated.config.max_words == searched.config.max_words  # type: ignore[union-attr]
    # Another architecture for the same weights is another model.
    copy = shutil.copytree(exported, tmp_path / "copy")
    assert given_model(str(copy), None) == given_model(str(exported), None)
    document = json.loads((copy / ARCHITECTURE).read_text())
    document["text_cfg"]["heads"] = 1
    (copy / ARCHITECTURE).write_text(json.dumps(document))
    assert given_model(str(copy), None) != given_model(str(exported), None)
    assert read_search_model(str(copy), recipe).digest != searched.digest


def test_the_card_says_what_was_measured(exported: Path) -> None:
    card = ModelCard.load(exported / "README.md")
    assert card.data.license == "apache-2.0" and card.data.model_name == "shapes-hbi"
    results = {(result.metric_type, result.metric_name): result for result in card.data.eval_results or []}
    assert len(results) == 12, "six metrics in two directions"
    result = results["recall_at_1", "recall at 1 text to video"]
    assert (result.metric_value, result.dataset_name, result.dataset_split) == (41.5, "generated shapes", "test")
    assert result.metric_args == {"low": 30.25, "high": 52.75, "interval": 0.95}
    for part in ("41.5 (30.2–52.8)", "4 videos of the split test", "| train | 3 | 3 |", "max_frames: 6", "python 3.11"):
        assert part in card.text
    assert "workspace" not in card.text and "RetrievalModel.from_pretrained" in card.text


@pytest.mark.slow
def test_a_question_answering_model_takes_its_answers_with_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = VideoQAModel(tiny_video_qa_config(tmp_path))
    folder = tmp_path / "model"
    folder.mkdir()
    save_model(folder, model, kind="video_qa", config=model.config)
    answers = [f"answer {number}" for number in range(model.config.num_answers)]
    (folder / ANSWERS_JSON).write_text(json.dumps(answers))
    # As it was stored before architectures were kept beside the weights.
    (folder / ARCHITECTURE).unlink()
    names = export_model(str(folder), Storage(str(tmp_path / "hub")), licence="unknown", onnx=False)
    assert set(names) == {"README.md", HUB_DESCRIPTION, WEIGHTS, ARCHITECTURE, ANSWERS_JSON}
    (tmp_path / ARCHITECTURE).unlink()
    loaded = VideoQAModel.from_pretrained(tmp_path / "hub")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert vocabulary_of(str(tmp_path / "hub")).answers == tuple(answers)
    card = ModelCard.load(tmp_path / "hub" / "README.md")
    assert card.data.license == "unknown" and card.data.eval_results is None
    assert "no evaluation of this model was found" in card.text


@pytest.mark.slow
def test_what_cannot_be_exported_is_refused_and_nothing_is_written(model: Path, exported: Path, tmp_path: Path) -> None:
    output = Storage(str(tmp_path / "hub"))
    with pytest.raises(ValueError, match=r"is not empty, it holds README\.md, .*; give another folder"):
        export_model(str(model), Storage(str(exported)), licence="mit", onnx=False)
    with pytest.raises(ValueError, match="is a file of the published code; an export needs a folder of ours"):
        export_model(str(tmp_path / "pytorch_model.bin.3"), output, licence="mit", onnx=False)
    for kind in ("estimator", "zero_shot"):
        Storage(str(tmp_path)).write_json("other/model.json", {"kind": kind, "config": {}})
        with pytest.raises(ValueError, match=f"holds a model of kind '{kind}'; models of kind retrieval and video_qa"):
            export_model(str(tmp_path / "other"), output, licence="mit", onnx=False)
    older = shutil.copytree(model, tmp_path / "older")
    (older / ARCHITECTURE).unlink()
    with pytest.raises(FileNotFoundError, match=r"trained with the architecture .*tiny-clip\.json, which is not there"):
        export_model(str(older), output, licence="mit", onnx=False)
    (older / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=r"older holds no model\.safetensors; give the folder model of a"):
        export_model(str(older), output, licence="mit", onnx=False)
    Storage(str(tmp_path)).write_json("other/model.json", {"kind": "video_qa", "config": {}})
    (tmp_path / "other" / WEIGHTS).touch()
    with pytest.raises(FileNotFoundError, match=r"other holds no answers\.json; give the folder model of a"):
        export_model(str(tmp_path / "other"), output, licence="mit", onnx=False)
    Storage(str(tmp_path)).write_json(
        "other/model.json", {"kind": "retrieval", "config": {}, LEFT_OUT: ["clip.visual"]}
    )
    with pytest.raises(ValueError, match="other is a checkpoint of a training that goes on, without the weights"):
        export_model(str(tmp_path / "other"), output, licence="mit", onnx=False)
    with pytest.raises(FileNotFoundError, match="holds no model of the task retrieval that this recipe has trained"):
        options = ["--config", "jobs/recipes/demo.yaml", "--workspace", str(tmp_path / "empty")]
        main([*options, "--output", str(tmp_path / "hub")])
    assert not output.exists("")


def test_a_config_of_another_library_is_no_model_of_ours(tmp_path: Path) -> None:
    (tmp_path / HUB_DESCRIPTION).write_text('{"hidden_size": 512}')
    with pytest.raises(ValueError, match=r"config\.json is not a model's description as this project writes it"):
        kind_of_model(model_folder(str(tmp_path)))
