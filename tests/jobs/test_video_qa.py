"""Question answering through the jobs: trained after retrieval, evaluated, asked, and alone on published files."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hbi_models.axes import TextBatch, VideoBatch
from hbi_models.clip.preprocessing import normalize_pixels
from hbi_models.clip.tokenizer import CaptionTokenizer
from hbi_models.published_weights import video_qa_to_published
from jobs import ask as ask_job
from jobs import evaluate_video_qa
from jobs import run as run_job
from pipelines.graph import make_graph, make_qa_evaluation_graph
from pipelines.models.folder import MODEL
from pipelines.models.mlflow_model import VideoAnswerer, served_model
from pipelines.models.prediction import load_answerer
from pipelines.models.weights import load_video_qa
from pipelines.recipe.recipe import Recipe
from pipelines.splits import QuestionView
from pipelines.stages.frames import frames_pool
from pipelines.stages.labels import labels_pool
from pipelines.workspace.artifact import Artifact
from pipelines.workspace.records import ANSWERS, MANIFEST_FILE
from pipelines.workspace.storage import Storage
from tests.jobs.recipes import actions, read, run, write_recipe
from tests.tiny_retrieval import MAX_WORDS

pytestmark = pytest.mark.slow

TRAIN_VIDEOS, TEST_VIDEOS = 24, 6

VIDEO_QA: dict[str, Any] = {
    "max_words": MAX_WORDS,
    "merging": {"text_rates": [0.5, 0.5], "video_rates": [0.5, 0.5], "heads": 4},
    "head": {"projection": 16, "hidden": 16},
    "epochs": 2,
    "batch_size": 8,
    "optimizer": {"lr": 1e-3, "clip_lr_factor": 1.0},
}


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
        found = {stage.name: graph.artifact(stage.name) for stage in graph.stages}
        return {name: artifact for name, artifact in found.items() if artifact is not None}

    @property
    def model(self) -> Storage:
        return self.artifacts["video_qa"].storage.folder(MODEL)

    @property
    def metrics(self) -> Any:
        return self.artifacts["qa_evaluation"].storage.read_json("metrics.json")

    @property
    def answers(self) -> list[dict[str, Any]]:
        return rows_of(self.artifacts["qa_evaluation"])

    def video(self, name: str) -> str:
        return self.artifacts["shapes"].storage.path("videos", f"{name}.mp4")


def rows_of(evaluation: Artifact) -> list[dict[str, Any]]:
    table = evaluation.storage.read_table("answers.parquet")
    assert table.schema.equals(ANSWERS)
    return table.to_pylist()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Retrieval and, from its model, question answering, with a vocabulary that misses some answers."""
    folder = tmp_path_factory.mktemp("video-qa")
    path = write_recipe(
        folder,
        tasks=["retrieval", "video_qa"],
        data={
            "validation_videos": 4,
            "shapes": {
                "train_videos": TRAIN_VIDEOS,
                "test_videos": TEST_VIDEOS,
                "captions_per_video": 1,
                "image_size_px": 32,
                "duration_s": 2.0,
            },
        },
        video_qa={**VIDEO_QA, "from_retrieval": True, "answers": {"size": 8}},
        qa_evaluation={"bootstrap_samples": 50},
    )
    options = ["--model.game.teacher", "exact"]
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        assert run_job.main(["--config", str(path), *options]) == 0
    return Run(path, read(path, *options), out.getvalue(), err.getvalue())


def test_the_printed_next_steps_work(finished: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, _, printed = finished.out.partition("Next, for example:")
    commands = {line.split()[2]: shlex.split(line) for line in printed.splitlines() if line}
    assert list(commands) == ["jobs.index", "jobs.search", "jobs.serve", "jobs.draw", "jobs.ask"]
    assert import_module("jobs.ask").main(commands["jobs.ask"][3:]) == 0
    assert "probability" in capsys.readouterr().out
    assert import_module("jobs.draw").main([*commands["jobs.draw"][3:], "--output", str(tmp_path)]) == 0
    assert len(list(tmp_path.iterdir())) == 5
    # Indexing, searching and serving have tests of their own.
    for name in ("jobs.index", "jobs.search", "jobs.serve"):
        with pytest.raises(SystemExit) as ended:
            import_module(name).main([*commands[name][3:], "--print_config"])
        assert ended.value.code == 0
    served = commands["jobs.serve"][3:]
    assert served == ["--index", f"{finished.recipe.workspace}/index", "--video_qa", finished.model.uri]


def test_work_of_one_process_needs_no_ray(finished: Run) -> None:
    assert "this process does all of the work; Ray is not started" in finished.err
    assert "Ray: started" not in finished.err


def test_both_tasks_share_videos_and_frames(finished: Run) -> None:
    counts = {name: artifact.counts for name, artifact in finished.artifacts.items()}
    stages = ["shapes", "manifest", "answers", "frames", "retrieval", "evaluation", "video_qa", "qa_evaluation"]
    assert list(counts) == stages
    assert counts["frames"]["rows"] == TRAIN_VIDEOS + TEST_VIDEOS
    assert counts["answers"]["rows"] == 8
    asked = counts["manifest"]
    assert counts["video_qa"]["rows"] + counts["video_qa"]["left_out"] == asked["questions_train"]
    assert counts["video_qa"]["rows"] == counts["answers"]["train_answerable"] < asked["questions_train"]
    assert counts["qa_evaluation"]["rows"] == asked["questions_test"]
    # The retrieval model saw no test video; where question answering starts is said.
    assert "its encoder is used, the answer heads are new" in finished.err
    assert "has seen their captions" not in finished.err


def test_the_terminal_shows_both_results(finished: Run) -> None:
    out = finished.out
    asked = f"{TEST_VIDEOS} videos, 8 answers to choose from of the split test"
    for words in ("text → video", asked, "most frequent answer per type", "answerable top-1"):
        assert words in out
    assert f"Artifacts: {finished.artifacts['evaluation'].storage.uri}" in out
    assert f"Artifacts: {finished.artifacts['qa_evaluation'].storage.uri}" in out


def test_mlflow_holds_curves_and_both_results(finished: Run) -> None:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{finished.recipe.workspace}/mlflow.db")
    experiment = client.get_experiment_by_name("hbi")
    assert experiment is not None
    runs = {found.info.run_name: found for found in client.search_runs([experiment.experiment_id])}
    flat = finished.artifacts["qa_evaluation"].counts
    for name in ("all/accuracy", "answerable/top_5_accuracy", "all/what/accuracy", "all/most_frequent_answer"):
        assert runs["qa_evaluation"].data.metrics[name] == pytest.approx(flat[name])
        assert runs["pipeline"].data.metrics[f"qa_evaluation/{name}"] == pytest.approx(flat[name])
    assert "evaluation/text_to_video/recall_at_1" in runs["pipeline"].data.metrics
    steps = int(finished.artifacts["video_qa"].counts["steps"])
    for name in ("train/loss", "train/entity_ce", "train/distill_action", "learning_rate/head_decay"):
        points = client.get_metric_history(runs["video_qa"].info.run_id, name)
        assert [point.step for point in points] == list(range(1, steps + 1))
    assert 0 <= runs["video_qa"].data.metrics["validation/accuracy"] <= 100


def test_metrics_follow_from_the_answers(finished: Run) -> None:
    rows, document = finished.answers, finished.metrics
    manifest = finished.artifacts["manifest"].storage.read_table(MANIFEST_FILE).to_pylist()
    asked = [(row["video_id"], item) for row in manifest for item in row["questions"] if item["split"] == "test"]
    assert sorted((row["video_id"], row["question"], row["answer"], row["type"]) for row in rows) == sorted(
        (name, item["question"], item["answer"], item["type"]) for name, item in asked
    )
    vocabulary = finished.artifacts["answers"].storage.read_json("answers.json")
    for row in rows:
        known = row["answer"] in vocabulary
        assert row["label"] == (vocabulary.index(row["answer"]) if known else None)
        assert row["correct"] == (row["top_answers"][0] == row["answer"])
        assert row["correct"] == (known and row["rank"] == 1)
        assert (row["rank"] is not None and row["rank"] <= 5) == (row["answer"] in row["top_answers"])
        assert sorted(row["top_probabilities"], reverse=True) == row["top_probabilities"]
        assert 0 < sum(row["top_probabilities"]) <= 1 + 1e-6
    members = {"all": rows, "answerable": [row for row in rows if row["answer"] in vocabulary]}
    assert 0 < len(members["answerable"]) == document["answerable_questions"] < len(rows) == document["questions"]
    for name, counted in members.items():
        kinds = {"overall": counted} | {
            kind: [row for row in counted if row["type"] == kind] for kind in {row["type"] for row in counted}
        }
        assert document[name].keys() == kinds.keys()
        for kind, questions in kinds.items():
            found = document[name][kind]
            assert found["questions"] == len(questions)
            hits = [[row["answer"] in row["top_answers"][:k] for row in questions] for k in (1, 5)]
            for metric, correct in zip(("accuracy", "top_5_accuracy"), hits, strict=True):
                assert found[metric]["value"] == pytest.approx(100 * np.mean(correct))
                assert found[metric]["low"] <= found[metric]["value"] <= found[metric]["high"]


def test_baselines_guess_what_was_most_frequent_in_training(finished: Run) -> None:
    manifest = finished.artifacts["manifest"].storage.read_table(MANIFEST_FILE).to_pylist()
    trained = [item for row in manifest for item in row["questions"] if item["split"] == "train"]

    def guess(questions: list[dict[str, str]]) -> str:
        counts = Counter(item["answer"] for item in questions)
        return min(counts, key=lambda answer: (-counts[answer], answer))

    overall = guess(trained)
    by_type = {kind: guess([item for item in trained if item["type"] == kind]) for kind in ("what", "how")}
    vocabulary = finished.artifacts["answers"].storage.read_json("answers.json")
    found, rows = finished.metrics["baselines"], finished.answers
    assert found["most_frequent_answer"]["answer"] == overall
    assert found["most_frequent_answer_per_type"]["answers"] == by_type
    for name, counted in (("all", rows), ("answerable", [row for row in rows if row["answer"] in vocabulary])):
        always = 100 * np.mean([row["answer"] == overall for row in counted])
        typed = 100 * np.mean([row["answer"] == by_type[row["type"]] for row in counted])
        assert found["most_frequent_answer"][name]["value"] == pytest.approx(always)
        assert found["most_frequent_answer_per_type"][name]["value"] == pytest.approx(typed)


def test_a_model_answers_about_a_file_what_its_evaluation_says(finished: Run) -> None:
    answerer = load_answerer(finished.model.uri)
    for row in finished.answers[::5]:
        found = answerer.answer(finished.video(row["video_id"]), row["question"])
        probabilities = dict(zip(row["top_answers"], row["top_probabilities"], strict=True))
        assert len(found) == 5
        # Other batch sizes round differently: answers that are closer than that may change places.
        for prediction, expected in zip(found, row["top_probabilities"], strict=True):
            assert prediction.probability == pytest.approx(expected, abs=1e-4)
            assert probabilities.get(prediction.answer, expected) == pytest.approx(prediction.probability, abs=1e-4)


def test_the_served_model_answers_tensors(finished: Run) -> None:
    answerer, signature = served_model(finished.model)
    assert isinstance(answerer, VideoAnswerer)
    model = load_video_qa(finished.model, Path())
    view = view_of(finished, "test")
    texts = [view.texts(video)[0] for video in range(2)]
    token_ids, mask = map(torch.from_numpy, CaptionTokenizer(MAX_WORDS)(texts))
    clips = view.store.batch(range(2), image_size_px=32, max_frames=model.config.encoder.max_frames)
    with torch.inference_mode():
        logits = answerer(token_ids, mask, clips.frames, clips.mask)
        questions = model.encoder.encode_text(TextBatch(token_ids, mask))
        videos = model.encoder.encode_video(VideoBatch(normalize_pixels(clips.frames), clips.mask))
        assert torch.equal(logits, model.answer_logits(questions, videos))
    assert list(answerer.answers) == finished.model.read_json("answers.json")
    given = {"token_ids": token_ids, "word_mask": mask, "frames": clips.frames, "frame_mask": clips.mask}
    for spec in signature.inputs.inputs:
        array = given.pop(spec.name).numpy()
        assert (array.dtype, array.shape[1:]) == (spec.type, tuple(spec.shape)[1:])
    assert not given
    assert signature.outputs.inputs[0].shape == (-1, logits.shape[1])


def view_of(finished: Run, split: Any) -> QuestionView:
    manifest, frames = finished.artifacts["manifest"].storage, finished.artifacts["frames"].storage
    pool = frames_pool(Storage(finished.recipe.workspace), finished.recipe).storage
    return QuestionView(manifest, frames, pool, split)


@pytest.fixture(scope="module")
def published(finished: Run, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The trained model as the published code would have saved it."""
    path = tmp_path_factory.mktemp("published") / "pytorch_model.bin.4"
    torch.save(video_qa_to_published(load_video_qa(finished.model, Path()).state_dict()), path)
    return str(path)


def test_a_published_checkpoint_is_evaluated_without_training(finished: Run, published: str) -> None:
    graph = make_qa_evaluation_graph(finished.recipe, published)
    outcomes = run(finished.recipe, graph)
    assert actions(outcomes) == dict.fromkeys(["shapes", "manifest", "answers", "frames"], "skipped") | {
        "qa_evaluation": "done"
    }
    evaluated = outcomes["qa_evaluation"].artifact
    found, expected = evaluated.storage.read_json("metrics.json"), {**finished.metrics, "checkpoint": published}
    # What is known about the choice of the checkpoint stands beside a model of ours alone.
    assert found["protocol"].pop("checkpoint") != expected["protocol"].pop("checkpoint")
    assert found == expected
    assert rows_of(evaluated) == finished.answers


def test_the_evaluation_job_plans_without_training(
    finished: Run, published: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--config", str(finished.recipe_file), "--model.game.teacher", "exact", "--plan"]
    assert evaluate_video_qa.main([*arguments, "--checkpoint", published]) == 0
    printed = capsys.readouterr().out
    assert "qa_evaluation" in printed
    assert "retrieval" not in printed
    assert evaluate_video_qa.main(arguments) == 0
    assert "qa_evaluation  " in capsys.readouterr().out


def test_a_question_about_a_file_is_answered_as_json(finished: Run, capsys: pytest.CaptureFixture[str]) -> None:
    row = finished.answers[0]
    line = ["--checkpoint", finished.model.uri, "--top", "3", "--json", "--video", finished.video(row["video_id"])]
    assert ask_job.main([*line, row["question"]]) == 0
    answers = json.loads(capsys.readouterr().out)["answers"]
    assert [answer["probability"] for answer in answers] == pytest.approx(row["top_probabilities"][:3], abs=1e-4)


def ask(*, question: str, **options: str) -> int:
    arguments = [argument for name, value in options.items() for argument in (f"--{name}", value)]
    return ask_job.main([*arguments, question])


def test_a_published_checkpoint_answers_with_a_recipe(
    finished: Run, published: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = finished.answers[0]
    asked = {"video": finished.video(row["video_id"]), "question": row["question"]}
    with pytest.raises(ValueError, match="give the recipe that says its model, frames and answers"):
        ask(checkpoint=published, **asked)
    recipe = {"config": str(finished.recipe_file), "model.game.teacher": "exact"}
    # Generated data lies in the workspace, so the recipe alone does not say where its answers are.
    with pytest.raises(FileNotFoundError, match=r"set video_qa\.answers\.file"):
        ask(checkpoint=published, **recipe, **asked)
    (tmp_path / "ans2label.json").write_text(json.dumps(finished.model.read_json("answers.json")))
    answers = {"video_qa.answers.size": "null", "video_qa.answers.file": str(tmp_path / "ans2label.json")}
    assert ask(checkpoint=published, **recipe, **answers, **asked) == 0
    header, _, first, *_ = capsys.readouterr().out.splitlines()
    assert header.split() == ["answer", "probability"]
    assert float(first.split()[-1]) == pytest.approx(row["top_probabilities"][0], abs=6e-4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"video": "nowhere.mp4"}, FileNotFoundError, "no file at .*nowhere.mp4"),
        ({"video": "{recipe}"}, ValueError, r"recipe\.yaml cannot be used \(undecodable\)"),
        ({"question": " "}, ValueError, "the question is empty"),
        ({"top": "0"}, ValueError, "top is 0; it must be 1 or more"),
        ({"checkpoint": "{retrieval}"}, ValueError, "a model of kind 'retrieval'; a model of kind 'video_qa'"),
        ({"checkpoint": "nowhere"}, FileNotFoundError, "neither a folder with model.json nor a published file"),
        ({"checkpoint": "{training}"}, FileNotFoundError, "holds no answers.json; give the folder model"),
        ({"config": "{recipe}"}, ValueError, "says itself how it was trained; leave out the recipe"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    finished: Run, options: Mapping[str, str], error: type[Exception], message: str
) -> None:
    saved = Path(finished.artifacts["video_qa"].storage.path()).rglob("model.json")
    places = {
        "recipe": str(finished.recipe_file),
        "retrieval": finished.artifacts["retrieval"].storage.folder(MODEL).uri,
        "training": str(next(path.parent for path in saved if path.parent.name != MODEL)),
    }
    row = finished.answers[0]
    base = {"checkpoint": finished.model.uri, "video": finished.video(row["video_id"]), "question": row["question"]}
    given = {name: value.format(**places) for name, value in options.items()}
    with pytest.raises(error, match=message):
        ask(**{**base, **given})


@pytest.mark.parametrize(
    ("options", "message"), [({"question": " "}, "the question is empty"), ({"top": "0"}, "top is 0; it must be 1")]
)
def test_what_cannot_be_asked_is_refused_before_a_model_is_read(options: Mapping[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ask(**{"checkpoint": "nowhere", "video": "nowhere.mp4", "question": "what color is it", **options})


@pytest.fixture(scope="module")
def questions_alone(finished: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """MSR-VTT-QA's own files, in the copy that names videos by number, with an estimator to teach."""
    folder = tmp_path_factory.mktemp("msrvtt-qa")
    shapes = finished.artifacts["shapes"].storage
    for split in ("train", "val", "test"):
        lines = []
        for line in shapes.read_bytes(f"{split}.jsonl").decode().splitlines():
            record = json.loads(line)
            lines.append(json.dumps({**record, "video_id": int(record["video_id"].removeprefix("video"))}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "train_ans2label.json").write_bytes(shapes.read_bytes("train_ans2label.json"))
    path = write_recipe(
        folder,
        tasks=["video_qa"],
        data={"dataset": "msrvtt_qa", "annotations": str(folder), "videos": shapes.path("videos")},
        video_qa=VIDEO_QA,
        qa_evaluation={"bootstrap_samples": 10},
        tracking={"log_model": False},
    )
    recipe = read(path)
    outcomes = run(recipe)
    assert set(actions(outcomes).values()) == {"done"}
    return Run(path, recipe, finished.out, finished.err)


def test_published_files_run_without_captions(finished: Run, questions_alone: Run) -> None:
    counts = {name: artifact.counts for name, artifact in questions_alone.artifacts.items()}
    assert list(counts) == ["manifest", "answers", "frames", "labels", "estimator", "video_qa", "qa_evaluation"]
    asked = finished.artifacts["manifest"].counts
    for split in ("train", "val", "test"):
        assert counts["manifest"][f"questions_{split}"] == asked[f"questions_{split}"]
    assert counts["manifest"]["captions"] == 0
    vocabulary = json.loads((questions_alone.recipe_file.parent / "train_ans2label.json").read_text())
    assert questions_alone.model.read_json("answers.json") == sorted(vocabulary, key=vocabulary.__getitem__)
    assert counts["video_qa"]["left_out"] == 0
    assert counts["qa_evaluation"]["rows"] == asked["questions_test"]


def test_the_questions_play_the_game_where_there_are_no_captions(questions_alone: Run) -> None:
    manifest = questions_alone.artifacts["manifest"].storage.read_table(MANIFEST_FILE).to_pylist()
    tokenizer = CaptionTokenizer(MAX_WORDS)
    expected = {
        (row["video_id"], number): int(tokenizer([item["question"]])[1].sum())
        for row in manifest
        if row["split"] != "test"
        for number, item in enumerate(row["questions"])
    }
    pool = labels_pool(Storage(questions_alone.recipe.workspace), questions_alone.recipe).storage
    rows = [row for shard in pool.files(suffix=".parquet") for row in pool.read_table(shard).to_pylist()]
    assert {(row["video_id"], row["caption_index"]): row["num_words"] for row in rows} == expected
    assert questions_alone.artifacts["labels"].counts["rows"] == len(expected)
