"""Which settings count in a fingerprint, and that what they name counts by its contents."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hbi_models.clip.backbone import ClipBackbone
from hbi_models.clip.configs import ClipConfig
from hbi_models.config_fields import counts_for
from hbi_models.config_reading import config_from_plain
from hbi_models.configs import GameConfig, RetrievalConfig
from hbi_models.optimizer_config import OptimizerConfig
from hbi_models.retrieval import RetrievalModel
from pipelines.graph import make_evaluation_graph, make_graph, make_qa_evaluation_graph
from pipelines.labels import as_initialised
from pipelines.recipe.data import DataConfig, ShapesConfig
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.report import ReportConfig
from pipelines.stages.settings import checkpoint_digest, counting
from pipelines.workspace import contents
from pipelines.workspace.artifact import plain
from pipelines.workspace.contents import content_digest
from tests.hbi_models.tiny_model import random_batches, tiny_config, write_architecture

STAGES = ["shapes", "manifest", "frames", "labels", "estimator", "retrieval", "evaluation"]


RECIPE = Recipe(data=DataConfig(shapes=ShapesConfig(train_videos=30)), report=ReportConfig(enabled=False))


def with_value(config: Any, path: tuple[str, ...], value: Any) -> Any:
    name, *rest = path
    return replace(config, **{name: with_value(getattr(config, name), tuple(rest), value) if rest else value})


def fingerprints(setting: str, value: Any) -> dict[str, str]:
    return make_graph(with_value(RECIPE, tuple(setting.split(".")), value)).fingerprints


def differing(one: dict[str, str], other: dict[str, str]) -> list[str]:
    return [name for name in other if one.get(name) != other[name]]


def write_checkpoint(folder: Path, weights: bytes, *, kind: str = "retrieval") -> str:
    folder.mkdir(exist_ok=True)
    (folder / "model.json").write_text(f'{{"kind": "{kind}", "config": {{}}}}')
    (folder / "model.safetensors").write_bytes(weights)
    return str(folder)


@pytest.mark.parametrize(
    ("setting", "stages"),
    [
        ("model.clip.pretrained", STAGES[3:6]),
        ("model.clip.architecture", STAGES[3:6]),
        ("labels.checkpoint", ["labels"]),
        ("estimator.init_checkpoint", ["estimator"]),
        ("retrieval.init_checkpoint", ["retrieval"]),
    ],
)
def test_what_a_setting_names_counts_by_its_contents(tmp_path: Path, setting: str, stages: list[str]) -> None:
    one, other = (
        tmp_path / f"{name}{'.json' if setting.endswith('architecture') else '.pt'}" for name in ("one", "other")
    )
    one.write_bytes(b"first weights")
    before = fingerprints(setting, str(one))
    # The same contents elsewhere are the same; others in the same place are not.
    other.write_bytes(b"first weights")
    assert fingerprints(setting, str(other)) == before
    one.write_bytes(b"other weights")
    after = fingerprints(setting, str(one))
    changed = differing(before, after)
    assert changed[: len(stages)] == stages, "the stages that read it are the first to change"
    assert changed == STAGES[STAGES.index(stages[0]) :]


def test_a_name_that_is_no_path_counts_as_it_is(tmp_path: Path) -> None:
    settings = counting(ClipConfig(architecture="ViT-B-32-quickgelu", pretrained="openai"), "features")
    assert settings == {"architecture": "ViT-B-32-quickgelu", "pretrained": "openai"}


def test_coalitions_count_where_similarities_do_and_leave_no_trace_where_everybody_joins() -> None:
    before = make_graph(RECIPE).fingerprints
    assert "coalitions" not in json.dumps(plain(RECIPE.model))
    after = fingerprints("model.game.coalitions", 0.5)
    assert differing(before, after) == STAGES[STAGES.index("retrieval") :]
    read = config_from_plain(RetrievalConfig, plain(RetrievalConfig(game=GameConfig(coalitions=0.5))))
    assert read.game.coalitions == 0.5


def test_a_folder_of_ours_counts_by_its_weights_and_description(tmp_path: Path) -> None:
    one, other = (write_checkpoint(tmp_path / name, b"weights") for name in ("one", "other"))
    (tmp_path / "one/history.jsonl").write_text("{}")
    assert checkpoint_digest(one) == checkpoint_digest(other) == checkpoint_digest(f"file://{one}")
    write_checkpoint(tmp_path / "one", b"WEIGHTS")
    assert checkpoint_digest(one) != checkpoint_digest(other)
    write_checkpoint(tmp_path / "one", b"weights", kind="video_qa")
    assert checkpoint_digest(one) != checkpoint_digest(other)


def test_an_evaluated_checkpoint_counts_by_its_contents(tmp_path: Path) -> None:
    recipe = RECIPE
    trained_otherwise = with_value(recipe, ("model", "level_rates"), (1.0, 1.0, 0.0))
    ours = write_checkpoint(tmp_path / "one", b"weights")
    moved = write_checkpoint(tmp_path / "other", b"weights")
    before = make_evaluation_graph(recipe, ours).fingerprints
    assert make_evaluation_graph(recipe, moved).fingerprints == before
    # A folder of ours says itself what it is; of a published file the recipe does.
    assert make_evaluation_graph(trained_otherwise, ours).fingerprints == before
    write_checkpoint(tmp_path / "one", b"WEIGHTS")
    assert differing(before, make_evaluation_graph(recipe, ours).fingerprints) == ["evaluation"]
    published = tmp_path / "pytorch_model.bin"
    for make, changed in ((make_evaluation_graph, "evaluation"), (make_qa_evaluation_graph, "qa_evaluation")):
        published.write_bytes(b"weights")
        before = make(recipe, str(published)).fingerprints
        wider = with_value(recipe, ("model", "temporal", "layers"), 3)
        assert differing(before, make(wider, str(published)).fingerprints) == [changed]
        untrained = with_value(recipe, ("model", "game", "teacher"), "none")
        assert make(untrained, str(published)).fingerprints == before
        published.write_bytes(b"WEIGHTS")
        assert differing(before, make(recipe, str(published)).fingerprints) == [changed]


@pytest.mark.parametrize("option", ["labels.checkpoint", "estimator.init_checkpoint", "retrieval.init_checkpoint"])
def test_a_checkpoint_that_is_not_there_is_refused_before_anything_runs(tmp_path: Path, option: str) -> None:
    for place in ("nowhere", "nowhere.pt"):
        with pytest.raises(FileNotFoundError, match=place):
            fingerprints(option, str(tmp_path / place))


def test_a_large_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.pt"
    monkeypatch.setattr(contents, "_LARGE_BYTES", 8)
    path.write_bytes(b"12345678")
    first = content_digest(str(path))
    opened: list[str] = []
    resolve = contents.resolve

    class Watched:
        """A file system that says what is opened."""

        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            if name == "open_input_stream":
                opened.append(name)
            return getattr(self.inner, name)

    def watched(uri: str) -> Any:
        filesystem, place = resolve(uri)
        return Watched(filesystem), place

    monkeypatch.setattr(contents, "resolve", watched)
    assert content_digest(str(path)) == first
    assert not opened
    path.write_bytes(b"87654321")
    os.utime(path, ns=(1, 1))
    assert content_digest(str(path)) != first
    assert opened


def test_settings_that_came_later_change_no_fingerprint_at_their_default_and_only_trainings_otherwise() -> None:
    before = make_graph(RECIPE).fingerprints
    # As these stages were called before there were such settings.
    assert "train" not in counting(ClipConfig(), "training")
    assert {"ema_decay", "clip_layer_decay"}.isdisjoint(counting(OptimizerConfig()))
    assert counting(ClipConfig(train="lora"), "training")["train"] == "lora"
    for path, value in (
        (("model", "clip", "train"), "last_layers"),
        (("model", "clip", "lora", "rank"), 4),
        (("retrieval", "optimizer", "ema_decay"), 0.9),
        (("retrieval", "optimizer", "clip_layer_decay"), 0.9),
    ):
        changed = differing(before, make_graph(with_value(RECIPE, path, value)).fingerprints)
        assert changed == ["retrieval", "evaluation"], path


# --- the marks say the truth ---


def leaves(config: Any, path: tuple[str, ...] = (), *, counted: bool = True) -> Iterator[tuple[tuple[str, ...], bool]]:
    """Path of every setting, and whether it counts for features."""
    for item in fields(config):
        value, counts = getattr(config, item.name), counted and counts_for(item, ("features",))
        if is_dataclass(value):
            yield from leaves(value, (*path, item.name), counted=counts)
        else:
            yield (*path, item.name), counts


OTHERS: dict[str, Any] = {
    "text_rates": (0.75, 0.25),
    "video_rates": (0.25, 0.75),
    "level_rates": (0.0, 1.0, 1.0),
    "teacher": "estimator",
    "train": "none",
    "projections": ("mlp",),
    "heads": 2,
    "coalitions": 0.5,
}
UNCOUNTED = [path for path, counts in leaves(RetrievalConfig()) if not counts]


def test_there_are_settings_without_part_in_labels() -> None:
    assert ("merging", "heads") in UNCOUNTED
    assert ("clip", "architecture") not in UNCOUNTED
    assert ("quirks", "encode_padding") not in UNCOUNTED


@pytest.mark.slow
@pytest.mark.parametrize("path", UNCOUNTED, ids=".".join)
def test_settings_without_part_in_labels_change_no_feature(tmp_path: Path, path: tuple[str, ...]) -> None:
    base = tiny_config(tmp_path)
    old: Any = base
    for name in path:
        old = getattr(old, name)
    new = OTHERS[path[-1]] if path[-1] in OTHERS else (not old) if isinstance(old, bool) else 2 * old + 1
    assert new != old
    for one, other in zip(features(base), features(with_value(base, path, new)), strict=True):
        assert torch.equal(one, other)


def features(config: RetrievalConfig) -> list[torch.Tensor]:
    """What labels are made of, by a model as it is initialised."""
    torch.manual_seed(0)
    model = RetrievalModel(as_initialised(config)).eval()
    texts, videos = random_batches([12, 5, 3], [6, 2, 4])
    with torch.inference_mode():
        levels = model.encode_text(texts)[0], model.encode_video(videos)[0]
    return [tensor for level in levels for tensor in (level.features, level.mask, level.logits)]


def test_the_contents_of_pretrained_weights_reach_the_fingerprint_as_they_reach_the_model(tmp_path: Path) -> None:
    """A real file of weights: the same model from another place, another model from the same place."""
    from hbi_models.clip.loading import load_clip

    architecture = write_architecture(tmp_path)

    def write(path: Path, seed: int) -> ClipConfig:
        torch.manual_seed(seed)
        backbone: ClipBackbone = load_clip(ClipConfig(architecture=architecture, pretrained=None))
        save_file({name: value.contiguous() for name, value in backbone.state_dict().items()}, path)
        return ClipConfig(architecture=architecture, pretrained=str(path))

    one, moved = write(tmp_path / "a.safetensors", 0), write(tmp_path / "b.safetensors", 0)
    before = counting(one, "training")
    assert counting(moved, "training") == before
    assert str(tmp_path) not in str(before)
    changed = write(tmp_path / "a.safetensors", 1)
    assert changed == one
    assert counting(changed, "training") != before
