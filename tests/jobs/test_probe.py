"""``jobs.probe`` on generated clips, with random weights: every figure follows from the model's own scores."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from hbi_models.metric_names import PAIR_SCORES
from hbi_models.metrics import text_to_video_ranks
from hbi_models.retrieval import RetrievalModel
from jobs.probe import main
from pipelines.graph import make_probe_graph
from pipelines.models.encoding import encode_texts, encode_videos
from pipelines.models.weights import load_model
from pipelines.splits import SplitView
from pipelines.stages.frames import frames_pool
from pipelines.video.perturbations import LEVELS, perturb
from pipelines.workspace.storage import Storage
from tests.jobs.recipes import read, write_recipe
from tests.search_index import write_model

TEST_VIDEOS = 6


@dataclass(frozen=True)
class Probed:
    """A finished probe."""

    recipe_file: Path
    checkpoint: str
    output: Storage
    view: SplitView
    model: RetrievalModel

    @property
    def document(self) -> Any:
        return self.output.read_json("probe.json")


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Probed:
    folder = tmp_path_factory.mktemp("probe")
    shapes = {"train_videos": 4, "test_videos": TEST_VIDEOS, "image_size_px": 32, "duration_s": 2.0}
    path = write_recipe(
        folder,
        data={"validation_videos": 0, "shapes": shapes},
        probe={"bootstrap_samples": 20, "batch_size": 4},
        evaluation={"batch_size": 4, "tile": 4},
    )
    checkpoint = str(write_model(folder))
    assert main(["--config", str(path), "--checkpoint", checkpoint]) == 0
    recipe = read(path)
    graph = make_probe_graph(recipe, checkpoint)
    artifacts = {name: graph.artifact(name) for name in ("manifest", "frames")}
    manifest, frames = (artifact.storage for artifact in artifacts.values() if artifact is not None)
    view = SplitView(manifest, frames, frames_pool(graph.workspace, recipe).storage, "test")
    (scratch := folder / "scratch").mkdir()
    return Probed(path, checkpoint, graph.output("probe"), view, load_model(Storage(checkpoint), scratch).eval())


def scores(probed: Probed, texts: list[str], **options: Any) -> torch.Tensor:
    common: dict[str, Any] = {"device": torch.device("cpu"), "batch_size": 3}
    with torch.inference_mode():
        videos = encode_videos(probed.model, probed.view.store, range(len(probed.view)), **common, **options)
        return probed.model.similarity(encode_texts(probed.model, texts, **common), videos)


def test_every_caption_is_judged_against_each_of_its_changes(probed: Probed) -> None:
    rows = probed.output.read_table("negatives.parquet").to_pylist()
    assert {row["score"] for row in rows} == set(PAIR_SCORES)
    assert {row["class"] for row in rows} == {"colour", "shape", "motion", "order"}
    mine = [row for row in rows if row["score"] == "model"]
    texts = sorted({row[name] for row in mine for name in ("caption", "negative")})
    expected = scores(probed, texts)
    for row in mine:
        video = probed.view.store.video_ids.index(row["video_id"])
        assert row["caption"] in probed.view.texts(video)
        for name, text in (("true", row["caption"]), ("changed", row["negative"])):
            assert row[name] == pytest.approx(expected[texts.index(text), video].item(), abs=1e-5)
    for kind, values in probed.document["negatives"].items():
        right = [row["true"] > row["changed"] for row in mine if row["class"] == kind]
        assert values["pairs"] == len(right)
        assert values["model"]["value"] == pytest.approx(100 * sum(right) / len(right))
        assert values["model"]["low"] <= values["model"]["value"] <= values["model"]["high"]


@pytest.mark.parametrize("name", ["none", "dark", "drop frames"])
def test_recall_with_perturbed_videos_is_the_models_own(probed: Probed, name: str) -> None:
    captions, owners, _ = probed.view.texts_of(range(len(probed.view)))
    measured = probed.document["perturbations"][name]["recall_at_1"]
    assert len(measured) == (1 if name == "none" else 4)
    for strength, value in enumerate(measured):
        change = None if strength == 0 else lambda video, frames, at=strength: perturb(frames, name, at, video)
        ranks = text_to_video_ranks(scores(probed, captions, change=change), torch.tensor(owners))
        assert value["value"] == pytest.approx(100 * (ranks <= 1).double().mean().item())


def test_all_perturbations_are_measured_and_drawn(probed: Probed) -> None:
    assert set(probed.document["perturbations"]) == {"none", *LEVELS}
    assert probed.output.read_bytes("perturbations.png").startswith(b"\x89PNG")


def test_moments_stand_beside_three_baselines(probed: Probed) -> None:
    moments = probed.document["moments"]
    spans = {name: values for name, values in moments.items() if isinstance(values, dict)}
    assert set(spans) == {"search", "whole clip", "best frame ± 1 s", "prior's length at the best frame"}
    assert moments["queries"] == 2 * moments["videos"] > 0
    assert 0.4 < moments["prior"] < 0.6
    # Of two events that share a clip, the whole clip covers each to about a half.
    assert spans["whole clip"]["recall_at_1_iou_0.3"]["value"] == 100
    assert spans["whole clip"]["recall_at_1_iou_0.7"]["value"] == 0
    for values in spans.values():
        assert values["recall_at_1_iou_0.3"]["value"] >= values["recall_at_1_iou_0.5"]["value"]


def test_files_take_the_place_of_the_generated_truth(probed: Probed, tmp_path: Path,
                                                     capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    caption, video = probed.view.texts(0)[0], probed.view.store.video_ids[0]
    (tmp_path / "negatives.csv").write_text(
        f"caption,negative,class\n{caption},something else,all\nunknown,other,all\n"
    )
    window = {"qid": 1, "query": caption, "vid": video, "duration": 2, "relevant_windows": [[0, 1]]}
    lines = [window, {**window, "vid": "another"}]
    (tmp_path / "moments.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ["--probe.negatives", str(tmp_path / "negatives.csv"), "--probe.moments", str(tmp_path / "moments.jsonl")]
    options += ["--probe.parts", "[negatives,moments]"]
    assert main(["--config", str(probed.recipe_file), "--checkpoint", probed.checkpoint, *options]) == 0
    printed = capsys.readouterr().out
    assert "all" in printed and "search" in printed and "R@1 with" not in printed
    found = (
        make_probe_graph(read(probed.recipe_file, *options), probed.checkpoint).output("probe").read_json("probe.json")
    )
    assert set(found["negatives"]) == {"all"} and found["negatives"]["all"]["pairs"] == 1
    assert found["moments"]["queries"] == 1


def test_a_part_without_truth_is_refused_before_any_work() -> None:
    from pipelines.recipe.probe import ProbeConfig

    with pytest.raises(ValueError, match=r"probe.parts names negatives, which needs annotations"):
        ProbeConfig(parts=("negatives",)).parts_of(generated=False)
    assert ProbeConfig().parts_of(generated=False) == ("perturbations",)
    assert ProbeConfig().parts_of(generated=True) == ("negatives", "perturbations", "moments")
