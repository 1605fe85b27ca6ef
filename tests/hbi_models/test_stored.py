"""Models come back from folders and from the hub's cache, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file

from hbi_models.model_files import ARCHITECTURE, HUB_DESCRIPTION, WEIGHTS, DamagedFileError
from hbi_models.retrieval import RetrievalModel
from hbi_models.stored import StoredModel
from hbi_models.video_qa import VideoQAModel
from pipelines.models.weights import save_model
from pipelines.workspace.artifact import plain
from tests.hbi_models.tiny_model import tiny_config, tiny_video_qa_config


def make(kind: type[StoredModel], folder: Path) -> RetrievalModel | VideoQAModel:
    torch.manual_seed(0)
    if kind is RetrievalModel:
        return RetrievalModel(tiny_config(folder))
    return VideoQAModel(tiny_video_qa_config(folder))


def write(model: RetrievalModel | VideoQAModel, folder: Path) -> Path:
    """Returns ``folder`` with the model as it is exported, and nothing of it elsewhere."""
    folder.mkdir(parents=True)
    save_model(folder, model, kind=model.kind, config=model.config)
    (folder / "model.json").rename(folder / HUB_DESCRIPTION)
    (folder.parent / ARCHITECTURE).unlink(missing_ok=True)
    return folder


@pytest.mark.parametrize("kind", [RetrievalModel, VideoQAModel])
def test_a_folder_gives_the_same_model(tmp_path: Path, kind: type[RetrievalModel | VideoQAModel]) -> None:
    model = make(kind, tmp_path)
    loaded = kind.from_pretrained(write(model, tmp_path / "model"))
    assert type(loaded) is kind and not loaded.training
    expected = model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    # Stored once more, it is the same again.
    again = kind.from_pretrained(write(loaded, tmp_path / "again"))
    assert plain(again.config.with_clip(model.config.clip)) == plain(model.config)


def test_an_id_is_found_in_the_cache_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    commit, repository = "0" * 39 + "1", tmp_path / "hub" / "models--owner--name"
    model = make(RetrievalModel, tmp_path)
    write(model, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    (tmp_path / ARCHITECTURE).unlink()
    for revision in (None, commit):
        loaded = RetrievalModel.from_pretrained("owner/name", revision=revision)
        assert torch.equal(loaded.clip.text_projection, model.clip.text_projection)
    with pytest.raises(ValueError, match=r"owner/name holds a model of kind 'retrieval'; a model of kind 'video_qa'"):
        VideoQAModel.from_pretrained("owner/name")
    with pytest.raises(ValueError, match=r"owner/other is no folder, and as a model of the Hugging Face hub it is not"):
        RetrievalModel.from_pretrained("owner/other")
    with pytest.raises(ValueError, match=r"is no folder"):
        RetrievalModel.from_pretrained(tmp_path / "no" / "such" / "folder")


def test_what_is_no_model_of_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no model\.json"):
        RetrievalModel.from_pretrained(tmp_path)
    (tmp_path / HUB_DESCRIPTION).write_text(json.dumps({"hidden_size": 512}))
    with pytest.raises(DamagedFileError, match=r"config\.json is not a model's description as this project writes it"):
        RetrievalModel.from_pretrained(tmp_path)
    folder = write(make(RetrievalModel, tmp_path), tmp_path / "model")
    save_file({"x": torch.zeros(1)}, folder / WEIGHTS)
    with pytest.raises(ValueError, match=r"do not fit the configured model: missing .*left over x|missing .* more"):
        RetrievalModel.from_pretrained(folder)
    (folder / WEIGHTS).write_bytes(b"no weights")
    with pytest.raises(DamagedFileError, match="it is damaged"):
        RetrievalModel.from_pretrained(folder)
