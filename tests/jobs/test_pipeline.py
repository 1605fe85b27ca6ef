"""The whole graph, run once as a user runs it, and what it leaves behind."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hbi_models.axes import TextBatch, VideoBatch
from hbi_models.banzhaf.exact import exact_interaction
from hbi_models.clip.preprocessing import normalize_pixels
from hbi_models.clip.tokenizer import CaptionTokenizer
from hbi_models.retrieval import RetrievalModel
from hbi_models.similarity import token_cosines
from jobs.run import main
from pipelines.graph import make_evaluation_graph, make_graph
from pipelines.labels import LabelSettings, make_label_model
from pipelines.models.folder import MODEL
from pipelines.models.weights import WEIGHTS, load_model
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.resources import ActorResources
from pipelines.splits import SplitView
from pipelines.stages.frames import frames_pool
from pipelines.stages.labels import labels_pool
from pipelines.train.files import HISTORY, RAY_SNAPSHOT
from pipelines.workspace.artifact import Artifact
from pipelines.workspace.storage import Storage
from tests.jobs.recipes import RESOURCES, actions, command, read, run, run_command, write_recipe

pytestmark = pytest.mark.slow

STAGES = ("shapes", "manifest", "frames", "labels", "estimator", "retrieval", "evaluation")
TRAIN_VIDEOS, VALIDATION_VIDEOS, TEST_VIDEOS, CAPTIONS = 18, 6, 8, 2


@dataclass(frozen=True)
class Run:
    """A finished run of the pipeline."""

    recipe_file: Path
    recipe: Recipe
    out: str
    err: str

    @property
    def artifacts(self) -> dict[str, Artifact]:
        graph = make_graph(self.recipe)
        found = {name: graph.artifact(name) for name in STAGES}
        return {name: artifact for name, artifact in found.items() if artifact is not None}

    def view(self, split: Any) -> SplitView:
        manifest, frames = self.artifacts["manifest"].storage, self.artifacts["frames"].storage
        return SplitView(manifest, frames, frames_pool(Storage(self.recipe.workspace), self.recipe).storage, split)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("pipeline")
    path = write_recipe(
        folder,
        data={
            "validation_videos": VALIDATION_VIDEOS,
            "shapes": {
                "train_videos": TRAIN_VIDEOS + VALIDATION_VIDEOS,
                "test_videos": TEST_VIDEOS,
                "captions_per_video": CAPTIONS,
                "image_size_px": 32,
                "duration_s": 2.0,
            },
        },
        # Two processes train retrieval, as on a cluster. Tasks and actors of whole runs are in the long suites; other
        # files do their work in place.
        resources={**RESOURCES, "retrieval": {"workers": 2}},
        tracking={"every_steps": 1},
    )
    # Workers, too, find what a path names that starts from the folder of the command.
    relative = ["--model.clip.architecture", Path(read(path).model.clip.architecture).name]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        patch.chdir(folder)
        code = main(["--config", str(path), *relative])
    assert code == 0, err.getvalue()[-5000:]
    return Run(path, read(path), out.getvalue(), err.getvalue())


def test_every_stage_leaves_its_artifact(finished: Run) -> None:
    counts = {name: artifact.counts for name, artifact in finished.artifacts.items()}
    assert tuple(counts) == STAGES
    videos = TRAIN_VIDEOS + VALIDATION_VIDEOS + TEST_VIDEOS
    assert {name: counts[name]["rows"] for name in STAGES} == {
        "shapes": videos,
        "manifest": videos,
        "frames": videos,
        "labels": (TRAIN_VIDEOS + VALIDATION_VIDEOS) * CAPTIONS,
        "estimator": TRAIN_VIDEOS * CAPTIONS,
        "retrieval": TRAIN_VIDEOS,
        "evaluation": TEST_VIDEOS,
    }
    assert {values["errors"] for values in counts.values()} == {0}
    assert counts["retrieval"]["steps"] == TRAIN_VIDEOS * CAPTIONS // 8


def test_the_terminal_shows_plan_outcome_and_metrics(finished: Run) -> None:
    out = finished.out
    assert [out.count(f"\n{stage} ") for stage in STAGES] == [2] * len(STAGES)
    assert "never run" in out
    assert f"{TEST_VIDEOS} captions (1 a video) and {TEST_VIDEOS} videos of the split test of generated shapes" in out
    assert (
        f"checkpoint: best epoch by the mean R@1 of both directions of 1 on {VALIDATION_VIDEOS} videos of the split val"
        in out
    )
    assert "text → video" in out
    assert f"Artifacts: {finished.artifacts['evaluation'].storage.uri}" in out
    assert "mlflow ui --host 127.0.0.1" in out
    assert "Traceback" not in finished.err
    logs = list((Path(finished.recipe.workspace) / "logs").iterdir())
    assert len(logs) == 1
    assert "retrieval: done in" in logs[0].read_text()


def test_everything_lies_in_the_workspace(finished: Run) -> None:
    folders = {path.name for path in Path(finished.recipe.workspace).iterdir()}
    assert folders == {*STAGES, "shards", "runs", "locks", "logs", "mlflow.db", "mlartifacts", "workspace.json"}
    assert {path.name for path in finished.recipe_file.parent.iterdir()} == {
        "recipe.yaml",
        "tiny-clip.json",
        "workspace",
    }


def test_a_second_run_does_nothing_and_starts_neither_ray_nor_mlflow(finished: Run) -> None:
    code = (
        "import sys; from jobs.run import main\n"
        f"code = main(['--config', {str(finished.recipe_file)!r}])\n"
        "print('LOADED', [name for name in ('ray', 'mlflow', 'torch') if name in sys.modules])\n"
        "sys.exit(code)"
    )
    done = run_command([sys.executable, "-c", code], timeout_s=100)
    assert done.returncode == 0, done.stderr
    assert "Nothing to do: every stage is finished." in done.stdout
    assert "LOADED []" in done.stdout
    assert done.stdout.count(" skipped ") == len(STAGES)


def test_a_plan_runs_nothing(finished: Run) -> None:
    options = ["--labels.kind", "published", "--retrieval.optimizer.lr", "5e-4"]
    done = run_command(command(finished.recipe_file, "--plan", *options), timeout_s=100)
    states = {line.split()[0]: line.split()[2] for line in done.stdout.splitlines() if line.startswith(STAGES)}
    assert states == dict.fromkeys(STAGES[:3], "done") | dict.fromkeys(STAGES[3:], "missing")
    for reason in ("kind exact → published", "a new labels", "optimizer.lr 0.001 → 0.0005", "a new retrieval"):
        assert f"invalidated by {reason}\n" in done.stdout


def test_labels_are_the_exact_interaction_of_what_is_stored_with_them(finished: Run) -> None:
    scale = finished.recipe.model.game.similarity_scale
    rows = label_rows(finished)
    assert len(rows) == (TRAIN_VIDEOS + VALIDATION_VIDEOS) * CAPTIONS
    for row in rows:
        shape = (1, row["num_words"], row["num_frames"])
        words, frames = (torch.tensor([row[f"{name}_logits"]], dtype=torch.float64) for name in ("word", "frame"))
        similarity = torch.tensor(row["similarity"], dtype=torch.float64).reshape(shape)
        expected = exact_interaction(
            scale * similarity,
            words,
            frames,
            torch.ones_like(words, dtype=torch.bool),
            torch.ones_like(frames, dtype=torch.bool),
        )
        # The stage computes in float32: its rounding, relative to the largest similarity of 1000.
        torch.testing.assert_close(
            torch.tensor(row["interaction"]).reshape(shape), expected.float(), rtol=0, atol=1e-5 * scale
        )


def test_labels_are_made_of_the_features_of_the_model_as_initialised(finished: Run) -> None:
    model = make_label_model(LabelSettings(finished.recipe.model, finished.recipe.labels, finished.recipe.seed))
    view = finished.view("train")
    rows = {(row["video_id"], row["caption_index"]): row for row in label_rows(finished)}
    for video in (0, 5, 11):
        for number, caption in enumerate(view.texts(video)):
            row = rows[view.store.video_ids[video], number]
            text, clip = (levels[0] for levels in encode_alone(model, view, video, caption))
            assert (row["num_words"], row["num_frames"]) == (int(text.mask.sum()), int(clip.mask.sum()))
            cosines = token_cosines(text, clip)[0, : row["num_words"], : row["num_frames"]]
            # Encoded alone instead of in a batch: rounding of float32.
            torch.testing.assert_close(torch.tensor(row["similarity"]), cosines.flatten(), rtol=0, atol=1e-5)


def test_metrics_follow_from_the_ranks(finished: Run) -> None:
    storage = finished.artifacts["evaluation"].storage
    table, document = storage.read_table("ranks.parquet"), storage.read_json("metrics.json")
    ranks = {
        direction: np.array([row["rank"] for row in table.to_pylist() if row["direction"] == direction])
        for direction in ("text_to_video", "video_to_text")
    }
    assert {direction: len(values) for direction, values in ranks.items()} == dict.fromkeys(ranks, TEST_VIDEOS)
    for direction, values in ranks.items():
        metrics = document[direction]
        for k in (1, 5, 10, 50):
            assert metrics[f"recall_at_{k}"]["value"] == pytest.approx(100 * np.mean(values <= k))
        assert metrics["median_rank"]["value"] == np.median(values)
        assert metrics["mean_rank"]["value"] == pytest.approx(values.mean())
        for metric in metrics.values():
            assert metric["low"] <= metric["value"] <= metric["high"]


def test_ranks_are_those_of_items_that_are_encoded_and_compared_one_by_one(finished: Run) -> None:
    model, view = trained_model(finished), finished.view("test")
    items = [encode_alone(model, view, video, view.texts(video)[0]) for video in range(len(view))]
    with torch.inference_mode():
        scores = torch.tensor([[model.similarity(text, clip).item() for _, clip in items] for text, _ in items])
    storage = finished.artifacts["evaluation"].storage
    for row in storage.read_table("ranks.parquet").to_pylist():
        item = view.store.video_ids.index(row["video_id"])
        candidates = scores[item] if row["direction"] == "text_to_video" else scores[:, item]
        own = candidates[item]
        # Other batch sizes round differently: what is closer than that may stand on either side.
        surely, possibly = int((candidates > own + 1e-5).sum()), int((candidates > own - 1e-5).sum())
        assert 1 + surely <= row["rank"] <= possibly


@pytest.mark.parametrize("actors", [0, pytest.param(1, marks=pytest.mark.long)])
def test_other_tiles_and_batches_give_the_same_ranks_also_by_an_actor(finished: Run, actors: int) -> None:
    before = ranks_by_query(finished.artifacts["evaluation"])
    other = replace(
        finished.recipe,
        resources=replace(finished.recipe.resources, evaluation=ActorResources(max_actors=actors)),
        evaluation=replace(finished.recipe.evaluation, tile=3, batch_size=2),
    )
    outcomes = run(other, force=["evaluation"])
    assert actions(outcomes) == dict.fromkeys(STAGES[:-1], "skipped") | {"evaluation": "done"}
    assert ranks_by_query(outcomes["evaluation"].artifact) == before


def test_a_checkpoint_is_evaluated_without_training(finished: Run) -> None:
    trained = finished.artifacts
    checkpoint = trained["retrieval"].storage.folder(MODEL).uri
    outcomes = run(finished.recipe, make_evaluation_graph(finished.recipe, checkpoint))
    assert actions(outcomes) == dict.fromkeys(STAGES[:3], "skipped") | {"evaluation": "done"}
    evaluated = outcomes["evaluation"].artifact
    assert evaluated.fingerprint != trained["evaluation"].fingerprint
    assert evaluated.storage.read_json("metrics.json") == trained["evaluation"].storage.read_json("metrics.json")
    assert ranks_by_query(evaluated) == ranks_by_query(trained["evaluation"])


IN_THIS_PROCESS = ["--resources.retrieval.workers", "0", "--tracking.log_model", "false"]


def test_a_changed_training_setting_trains_and_evaluates_again_and_nothing_else(finished: Run) -> None:
    outcomes = run(read(finished.recipe_file, "--retrieval.optimizer.lr", "5e-4", *IN_THIS_PROCESS))
    assert actions(outcomes) == dict.fromkeys(STAGES[:5], "skipped") | dict.fromkeys(STAGES[5:], "done")
    assert outcomes["evaluation"].step.reason == "invalidated by a new retrieval"


def test_a_training_whose_first_points_were_lost_is_partial_where_it_has_a_checkpoint(finished: Run) -> None:
    recipe = read(finished.recipe_file, "--retrieval.epochs", "13")
    graph = make_graph(recipe)

    def planned() -> str:
        (step,) = (step for step in graph.plan() if step.stage.name == "retrieval")
        return step.state

    assert planned() != "partial"
    graph.output("retrieval").write_json(RAY_SNAPSHOT, {"checkpoint_results": []})
    assert planned() == "partial"
    graph.output("retrieval").delete(RAY_SNAPSHOT)


def test_the_teacher_of_the_trained_model_is_the_trained_estimator(finished: Run) -> None:
    folder = finished.artifacts["estimator"].storage.folder(MODEL)
    estimator = load_file(folder.path(WEIGHTS))
    teacher = trained_model(finished).teacher
    assert teacher is not None
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, estimator[name]), name


def test_curves_are_kept_beside_the_model(finished: Run) -> None:
    for stage in ("estimator", "retrieval"):
        artifact = finished.artifacts[stage]
        points = [json.loads(line) for line in artifact.storage.read_bytes(HISTORY).splitlines()]
        assert list(losses(artifact.storage)) == list(range(1, int(artifact.counts["steps"]) + 1))
        assert sum("validation/score" in point for point in points) == 1


def test_mlflow_holds_a_run_per_pipeline_run_and_a_nested_one_per_stage(finished: Run) -> None:
    client, parent, children = mlflow_runs(finished)
    assert parent.info.status == "FINISHED"
    assert parent.data.params["retrieval.batch_size"] == "8"
    assert parent.data.tags["version.torch"] == torch.__version__.split("+")[0]
    recalled = finished.artifacts["evaluation"].counts["text_to_video/recall_at_1"]
    assert parent.data.metrics["evaluation/text_to_video/recall_at_1"] == pytest.approx(recalled)
    assert set(children) == set(STAGES)
    for name, child in children.items():
        assert child.info.status == "FINISHED"
        assert child.data.tags["fingerprint"] == finished.artifacts[name].fingerprint
        assert child.data.metrics["count/rows"] == finished.artifacts[name].counts["rows"]
        assert "artifact.json" in [item.path for item in client.list_artifacts(child.info.run_id)]


def test_mlflow_holds_settings_curves_and_results_of_the_training(finished: Run) -> None:
    client, _, children = mlflow_runs(finished)
    run = children["retrieval"]
    assert run.data.params["optimizer.lr"] == "0.001"
    assert run.data.params["model.merging.heads"] == "4"
    steps = int(finished.artifacts["retrieval"].counts["steps"])
    for name in ("train/loss", "train/entity_nce", "train/gradient_norm", "learning_rate/head_decay"):
        assert [point.step for point in client.get_metric_history(run.info.run_id, name)] == list(range(1, steps + 1))
    assert run.data.metrics["throughput/pairs_per_s"] > 0
    assert 0 <= run.data.metrics["validation/text_to_video/recall_at_10"] <= 100
    evaluation = children["evaluation"].data.metrics
    assert evaluation["text_to_video/mean_rank"] >= 1
    assert "metrics.json" in [item.path for item in client.list_artifacts(children["evaluation"].info.run_id)]


def test_the_model_that_mlflow_holds_scores_captions_and_clips(finished: Run) -> None:
    import mlflow

    client, _, children = mlflow_runs(finished)
    run = children["retrieval"].info
    models = client.search_logged_models([run.experiment_id])
    (logged,) = (model for model in models if model.source_run_id == run.run_id)
    scorer = mlflow.pytorch.load_model(f"models:/{logged.model_id}")
    view, model = finished.view("test"), trained_model(finished)
    captions = [view.texts(video)[0] for video in range(3)]
    token_ids, mask = map(torch.from_numpy, CaptionTokenizer(finished.recipe.model.max_words)(captions))
    clips = view.store.batch(range(3), image_size_px=32, max_frames=finished.recipe.model.max_frames)
    with torch.inference_mode():
        scores = scorer(token_ids, mask, clips.frames, clips.mask)
        texts = model.encode_text(TextBatch(token_ids, mask))
        videos = model.encode_video(VideoBatch(normalize_pixels(clips.frames), clips.mask))
        assert torch.equal(scores, model.similarity(texts, videos))
    needed = Path(mlflow.pyfunc.get_model_dependencies(f"models:/{logged.model_id}")).read_text().splitlines()
    assert f"torch=={torch.__version__.split('+')[0]}" in needed
    assert {line.split("==")[0] for line in needed} == {"hbi-on-ray", "mlflow", "open_clip_torch", "torch"}
    # The signature describes these very tensors.
    signature = mlflow.models.get_model_info(f"models:/{logged.model_id}").signature
    given = {"token_ids": token_ids, "word_mask": mask, "frames": clips.frames, "frame_mask": clips.mask}
    for spec in signature.inputs.inputs:
        array = given.pop(spec.name).numpy()
        assert array.dtype == spec.type
        assert array.shape[1:] == tuple(spec.shape)[1:]
    assert not given


def losses(output: Storage) -> dict[int, float]:
    """The training loss of each step that the history holds."""
    points = [json.loads(line) for line in output.read_bytes(HISTORY).splitlines()]
    return {point["step"]: point["train/loss"] for point in points if "train/loss" in point}


def mlflow_runs(finished: Run) -> tuple[Any, Any, Mapping[str, Any]]:
    """The client, the parent run of the first pipeline run, and its children by stage."""
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{finished.recipe.workspace}/mlflow.db")
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("hbi")
    assert experiment is not None
    assert experiment.artifact_location == f"file://{finished.recipe.workspace}/mlartifacts"
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    parent = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    return client, parent, {run.data.tags["stage"]: run for run in children}


def label_rows(finished: Run) -> list[dict[str, Any]]:
    pool = labels_pool(Storage(finished.recipe.workspace), finished.recipe)
    return [row for shard in pool.storage.files() for row in pool.storage.read_table(shard).to_pylist()]


def trained_model(finished: Run) -> RetrievalModel:
    return load_model(finished.artifacts["retrieval"].storage.folder(MODEL), Path())


def encode_alone(model: RetrievalModel, view: SplitView, video: int, caption: str) -> tuple[Any, Any]:
    """The levels of one caption and of one video, each in a batch of its own."""
    token_ids, mask = map(torch.from_numpy, CaptionTokenizer(model.config.max_words)([caption]))
    clip = view.store.batch([video], image_size_px=32, max_frames=model.config.max_frames)
    with torch.inference_mode():
        return (
            model.encode_text(TextBatch(token_ids, mask)),
            model.encode_video(VideoBatch(normalize_pixels(clip.frames), clip.mask)),
        )


def ranks_by_query(artifact: Artifact) -> dict[tuple[str, str, int | None], float]:
    rows = artifact.storage.read_table("ranks.parquet").to_pylist()
    return {(row["direction"], row["video_id"], row["caption_index"]): row["rank"] for row in rows}
